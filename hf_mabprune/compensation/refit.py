"""Refits the output projections of a pruned model to give what the dense one gave, site by site.

A projection y = W h + b of the dense model, h its C inputs, is left by surgery with W_S and x = h_S, the S inputs that
stay. A method (`Compensation.fit`) gives the W' that brings W' x near y on calibration data. Where there may be a bias
it takes up the means, b' = E[y] - W' E[x], so that W' is fitted to covariances; else to moments about zero.

The guard begins with all refits and takes back, in the order of the forward pass, each without which the KL divergence
of the outputs from the dense model's is lower on held-out calibration data: least squares at one site can harm the
output, most of all where much has gone. Refits help each other, so that to add them one by one would refuse too many.
Symbols: C inputs of a projection, S that stay; D outputs; N positions seen.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from transformers import PreTrainedModel

from hf_mabprune.architectures import architecture_of
from hf_mabprune.arms import KeepIndices
from hf_mabprune.compensation.base import Compensation
from hf_mabprune.compensation.dense_reference import DenseReference
from hf_mabprune.compensation.refit_cache import RefitCache
from hf_mabprune.compensation.side_by_side import SideBySide
from hf_mabprune.compensation.site_refit import Below, SiteFigures, SiteRefit, cut_sites
from hf_mabprune.effects.finished_layers import FinishedLayers
from hf_mabprune.effects.memory import Sizes
from hf_mabprune.effects.pulls.cost import Cost
from hf_mabprune.progress import over
from hf_mabprune.runtime.hashes import sha256_by_name
from hf_mabprune.surgery.biases import declare_biases
from hf_mabprune.surgery.layers import names_after

LOWER = "held-out KL divergence is lower without"
UNKNOWN = "held-out KL divergence is not finite with it, nor without"
BOTH_MODELS = 1.5  # passes of the dense model that one of it and of the pruned one take
MATRICES = 5  # of the size of float32 moments, that a refit forms


@dataclass(frozen=True)
class CompensationFigures:
    """What a compensation did, and what it cost.

    Attributes:
        sites: One entry for each site that was cut, in the order of the forward pass.
        kl_before, kl_after: Mean KL divergence of the outputs from the dense model's, on held-out data, in nats.
        parameters: Number of those that new biases added.
        seconds: Wall-clock time of the whole compensation; what several selections share counts where it was made.
        forward_tokens: Tokens, padding included, that passed through the dense or the pruned model; a part of its
            layers counts as that part.
        changed: Names of the weights that are not as surgery left them, in the model's state dict.
    """

    sites: list[SiteFigures]
    kl_before: float
    kl_after: float
    parameters: int
    seconds: float
    forward_tokens: int
    changed: list[str] = field(default_factory=list)

    def after(self, earlier: "CompensationFigures | None") -> "CompensationFigures":
        """Adds what an earlier compensation of the same model cost, where there was one."""
        if earlier is None:
            return self
        tokens = earlier.forward_tokens + self.forward_tokens
        return replace(self, seconds=earlier.seconds + self.seconds, forward_tokens=tokens)


@torch.no_grad()
def compensate(
    method: Compensation, reference: DenseReference, small: PreTrainedModel, keep: KeepIndices
) -> CompensationFigures:
    """Refits the cut output projections of a pruned model, in place, its config with them where a bias appears.

    Args:
        method: How a site is refitted, from `make_compensation`.
        reference: The dense model and its data.
        small: Pruned model, from `cut(reference.model, keep, ...)`.
        keep: Unit indices that stayed.

    Returns:
        What was done at each site that was cut, in the order of the forward pass.
    """
    started, spent = time.monotonic(), reference.cost
    parameters, cut = small.num_parameters(), sha256_by_name(small)
    kl_before, sites = reference.divergence(small), cut_sites(reference.model, keep, goes_up(method, reference.model))
    below = _side_by_side(method, reference, small, keep)
    refits = [SiteRefit(method, reference, small, site, keep, below) for site in over(sites, "refits", "sites")]
    kl = reference.divergence(small)
    if method.guard:
        kl = _guard(reference, small, refits, kl_before, kl)
    declare_biases(small, [refit.there for refit in refits if refit.gave_bias()])
    figures = [refit.figures() for refit in over(refits, "errors", "sites")]
    reference.cost = sum((side.cost for side in below.values()), reference.cost)
    return CompensationFigures(
        sites=figures,
        kl_before=kl_before,
        kl_after=kl,
        parameters=small.num_parameters() - parameters,
        seconds=time.monotonic() - started,
        forward_tokens=round((reference.cost - spent).forward_tokens),
        changed=[name for name, digest in sha256_by_name(small).items() if cut.get(name) != digest],
    )


@torch.no_grad()
def refit_all(
    method: Compensation,
    reference: DenseReference,
    small: PreTrainedModel,
    keep: KeepIndices,
    cache: RefitCache,
) -> None:
    """Refits every site to the dense model's activations, without a guard, and without a config that says where biases
    came: quick, for sets that are compared.

    Args:
        method, reference, small, keep: As those of `compensate`.
        cache: Refits of earlier calls with this method and reference; new ones are added.
    """
    for site in over(cut_sites(reference.model, keep), "refits", "sites"):
        SiteRefit(method, reference, small, site, keep, {}, cache)


def goes_up(method: Compensation, model: PreTrainedModel) -> bool:
    """Tells whether a site's refit makes up for errors of the layers below.

    Not where layers run several times, nor behind norms: they give what is added the same length whatever a projection
    gives, so that no refit can make up for what is missing, and to try does great harm.

    Args:
        method: How sites are refitted.
        model: The dense model.
    """
    architecture = architecture_of(model)
    behind_norms = any(site.spec.norm for site in architecture.sites(model))
    return method.bottom_up and not behind_norms and not architecture.shares_layers(model)


def _side_by_side(method: Compensation, reference: DenseReference, small: PreTrainedModel, keep: KeepIndices) -> Below:
    """Readies both models to be gone up, on the data that refits are made from and on held-out data."""
    if not goes_up(method, reference.model):
        return {}
    batches, renamed = {False: reference.batches, True: reference.held_out}, names_after(reference.model, keep)
    return {key: SideBySide(reference.model, small, reference.task, found, renamed) for key, found in batches.items()}


def _guard(
    reference: DenseReference, small: PreTrainedModel, refits: Sequence[SiteRefit], kl_before: float, kl: float
) -> float:
    """Takes back the refits without which the held-out divergence is lower; all, if it is lowest with none.

    Args:
        refits: All that were made, in the order of the forward pass, which therefore need not run again below the one
            that is judged.
        kl_before: Held-out divergence without refits, in nats.
        kl: Held-out divergence with all of them.

    Returns:
        The divergence now.
    """
    finished = FinishedLayers(small, reference.task, reference.held_out)
    for refit in over(refits, "guard", "sites"):
        if refit.reason:
            continue
        reference.cost += Cost(forward_tokens=finished.raise_to(refit.there.depth))
        values = refit.values()
        refit.take_back()
        kl_without = reference.divergence(small, kl, finished)
        if kl_without < kl or not np.isfinite(kl):
            kl, refit.reason = kl_without, LOWER if np.isfinite(kl_without) else UNKNOWN
        else:
            refit.put(values)
    if kl <= kl_before and np.isfinite(kl):
        return kl
    for refit in refits:
        refit.take_back()
        refit.reason = refit.reason or LOWER
    return kl_before


def passes(
    method: Compensation,
    model: PreTrainedModel,
    sites: float,
    batches: float,
    held_out: float,
    shares: tuple[float, float],
) -> float:
    """Estimates the forward passes of a dense model over one batch, or as much work, of a compensation.

    Args:
        method: How sites are refitted.
        model: The dense model.
        sites: Number of its sites that are cut.
        batches, held_out: Number of batches that refits are made from, and that they are judged by.
        shares: Passes that one without a comparison of what it gives takes as long as, and the comparison.
    """
    passing, comparing = shares
    judged = held_out * (3 if method.guard else 2) * (passing + comparing)
    if method.guard:
        judged += held_out * sites * (passing / 2 + comparing)  # what comes after each site runs, in turn
    if not goes_up(method, model):
        return judged
    looks, layers = (1 + method.both_sides) * batches + held_out, len(architecture_of(model).layers(model))
    return judged + BOTH_MODELS * (batches + held_out + sites / layers * looks / 2)  # a look takes half a layer


def memory(sizes: Sizes, sets: int = 0) -> tuple[int, int]:
    """Estimates bytes: of the widest site while it is refitted, and of refits that are kept, were there no limit.

    Args:
        sets: Number of sets that are measured.
    """
    widest = max(sizes.squares) + 8 * sizes.hidden * max(sizes.columns)
    return MATRICES * widest, sizes.item * sizes.hidden * sum(sizes.columns) * sets
