"""What a reader of a report must know beside its figures: the warnings in the summary and on the card."""

from collections.abc import Mapping, Sequence

import numpy as np

from hf_mabprune.arms import LAYER
from hf_mabprune.compensation import CompensationFigures
from hf_mabprune.evaluation.figures import ModelFigures, RandomFigures
from hf_mabprune.recovery.recover import RecoveryFigures
from hf_mabprune.search.result import SearchResult
from hf_mabprune.selection.selected import Selection

THIN = 16  # a site that keeps less than one unit in so many
NAMED = 4  # sites that one line names
NOTHING = 1e-12  # nats, which are all rounding
FLOORS = {"neuron": "raise prune.min_neurons", "head": "raise prune.min_heads"}


def of_the_run(
    selection: Selection, found: SearchResult, refitted: CompensationFigures | None, trained: RecoveryFigures | None
) -> list[str]:
    """Warns of what the stages of a run left out, or did to one model alone."""
    said = []
    if found.broken:
        numbers = ", ".join(map(str, sorted(found.broken)))
        said.append(f"calibration batches without a finite loss were skipped: {numbers}")
    if (~selection.kept & found.kept).any():
        beyond = int((~selection.kept & found.kept).sum())
        said.append(f"{beyond} arms beyond the target of the search were removed by their last scores, not in context")
    left = [site for site in refitted.sites if not site.refitted] if refitted else []
    if left:
        sites = ", ".join(f"{site.site} ({site.reason})" for site in left)
        said.append(f"the compensation left alone: {sites}")
    if trained:
        said.append("recovery trained the pruned model, not the random draws")
    return said


def of_the_result(
    after: ModelFigures, random: Sequence[RandomFigures], kept: Mapping[str, Mapping[str, tuple[int, int]]]
) -> list[str]:
    """Warns of a pruned model that is broken, of one whose sites keep hardly anything, and of a search in vain.

    Args:
        after: The pruned model.
        random: The random draws.
        kept: kind -> name of the site -> (units kept, units before).
    """
    said = [] if np.isfinite(after.loss) else ["the loss of the pruned model is not finite"]
    divergences = [figures.kl for figures in (after, *(draw.figures for draw in random)) if figures.kl is not None]
    if divergences and all(abs(divergence) < NOTHING for divergence in divergences):
        said.append(
            "nothing that the model says depends on the arms: the KL divergence is 0 after the search"
            f"{' and in every random draw' if random else ''}, so the search had nothing to go by; look for a head of "
            "zeros, or dead layers"
        )
    return said + [line for kind, sites in kept.items() if kind != LAYER and (line := _thin(kind, sites))]


def _thin(kind: str, sites: Mapping[str, tuple[int, int]]) -> str:
    """Names the sites that are cut to next to nothing; empty where none is."""
    thin = [f"{name} ({left:,} of {whole:,})" for name, (left, whole) in sites.items() if THIN * left < whole]
    if not thin:
        return ""
    more = f" and {len(thin) - NAMED:,} more" if len(thin) > NAMED else ""
    remedy = FLOORS.get(kind, "lower the target")
    return f"less than 1 in {THIN} {kind}s are left at {', '.join(thin[:NAMED])}{more}: {remedy} if that is too little"
