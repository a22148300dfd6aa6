"""The arms that stay at one size; where there is a choice of layouts, validation data decide."""

from dataclasses import replace

import numpy as np

from hf_mabprune.config import PruningConfig
from hf_mabprune.evaluation.comparison import Comparison
from hf_mabprune.progress import stage
from hf_mabprune.search.result import SearchResult
from hf_mabprune.selection.layouts import width_multiple
from hf_mabprune.selection.selected import Selection


@stage("layout")
def select(comparison: Comparison, found: SearchResult, prune: PruningConfig) -> Selection:
    """Follows the order of removal to a size.

    Args:
        comparison: Measures the layouts that are possible.
        found: The finished search.
        prune: Settings with the one target of this size.

    Raises:
        ValueError: If the target is out of reach.
    """
    session = comparison.session
    plans = session.plans(prune)
    rules = width_multiple(prune, session.dense.config), prune.min_neurons
    best = Selection.along(plans.search, found.order, *rules, plans.reason)
    if plans.uniform is None:
        return best
    even = Selection.along(plans.uniform, found.order, *rules)
    loss, even_loss = (comparison.masked(s.kept, "validation", intervals=False).loss for s in (best, even))
    cost = f"validation loss {even_loss:.4f} uniform, {loss:.4f} per_layer"
    if even_loss <= loss * (1 + prune.auto_tolerance) or (np.isfinite(even_loss) and not np.isfinite(loss)):
        return replace(even, reason=f"auto: loads with plain AutoModel and costs little: {cost}")
    return replace(best, reason=f"auto: uniform costs too much quality: {cost}")
