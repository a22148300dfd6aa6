"""How much calibration data a run needs: for the choice of what goes, and apart from it for the refit of what stays.

Each set that is chosen on a number of examples is refitted on every number of them, and measured on the test split.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from hf_mabprune.config import PruneConfig
from hf_mabprune.evaluation.comparison import Comparison
from hf_mabprune.evaluation.quality import forward_of
from hf_mabprune.progress import over, stage
from hf_mabprune.runtime.accelerator import make_accelerator
from hf_mabprune.search.run import search
from hf_mabprune.selection.layouts import make_plans, width_multiple
from hf_mabprune.selection.selected import Selection
from hf_mabprune.session import Session, open_session
from hf_mabprune.surgery.cut import cut


@stage("benchmark")
def measure(settings: PruneConfig, choices: Sequence[int], refits: Sequence[int]) -> pd.DataFrame:
    """Measures the KL divergence of every pair of sizes: one row each, for each size of the target.

    Args:
        settings: Run settings; the numbers of calibration examples are varied.
        choices: Numbers of examples that a choice sees.
        refits: Numbers of examples that a refit sees; 0 leaves what stays as it is.
    """
    wide = with_examples(settings, max(refits))
    sessions = {count: with_examples(settings, count) for count in sorted({*choices, *refits} - {0})}
    comparison, rows = Comparison(wide), []
    for choice in over(choices, "choices", "numbers of examples"):
        for fraction, selection in chosen_on(sessions[choice]).items():
            keep = selection.plan.arms.kept_units(selection.kept)
            for refit in over(refits, "refits", "numbers of examples"):
                small = cut(wide.dense, keep, selection.plan.layout)
                if refit:
                    sessions[refit].refit(small, keep)
                found = comparison.measured(forward_of(small, wide.task), "test", intervals=False)
                rows.append(
                    {
                        "target": fraction,
                        "choice examples": choice,
                        "choice tokens": tokens_of(sessions[choice]),
                        "refit examples": refit,
                        "refit tokens": tokens_of(sessions[refit]) if refit else 0,
                        "KL": float(found.kl.mean()),
                        "error": float(found.kl.std(ddof=1) / np.sqrt(len(found.kl))),
                        "loss": found.loss,
                    }
                )
    return pd.DataFrame(rows)


def with_examples(settings: PruneConfig, count: int) -> Session:
    """Gives a session whose choices and refits see the same number of examples."""
    task = settings.task.model_copy(update={"calibration_examples": count, "refit_examples": 0})
    return open_session(settings.model_copy(update={"task": task}), make_accelerator())


def chosen_on(session: Session) -> dict[str, Selection]:
    """Searches on the calibration examples of a session; what stays at each size, by the name of its target."""
    sizes = session.settings.prune.sizes()
    plans = [make_plans(session.dense, session.arms, session.totals, size).search for size in sizes]
    found, _ = search(session, plans)
    rules = [(width_multiple(size, session.dense.config), size.min_neurons) for size in sizes]
    return {
        size.target.name(): Selection.along(plan, found.order, *rule)
        for size, plan, rule in zip(sizes, plans, rules, strict=True)
    }


def tokens_of(session: Session) -> int:
    """Positions of one pass over the calibration examples, padding included."""
    return sum(batch.tokens for batch in session.batches["calibration"])
