"""Fisher information, then exchanges within each layer that take the interactions of its arms into account."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from hf_mabprune.criteria.base import CRITERIA, Bools, Criterion
from hf_mabprune.criteria.statistics import CalibrationStatistics, Floats, Ints
from hf_mabprune.selection.plan import Plan


@CRITERIA.register("fisher_rearranged")
@dataclass(kw_only=True)
class FisherRearranged(Criterion):
    """Scores and sizes as those of fisher; then, layer by layer, norm(sum of g_a over removed arms a)^2 is lowered.

    g_a is the vector over mini-batches of dL_b/dm_a, and the norm the Fisher information of the layer's gates as one
    block instead of its diagonal. Each kept arm in turn, least Fisher information first, joins the removed ones, and
    whichever arm then leaves the smallest norm comes back. Only arms of the same number of units change places, so
    sizes stay what they are.

    Source: Kwon et al. 2022, arXiv 2204.09656, section 4.2 and released code.
    """

    passes: ClassVar[tuple[int, int]] = (1, 1)

    def scores(self, statistics: CalibrationStatistics) -> Floats:
        return np.square(statistics.gradients).sum(1)

    def choose(self, statistics: CalibrationStatistics, plan: Plan) -> tuple[Bools, Ints]:
        """As the contract says; a layer's arms take one another's places in the order, so that it ends in `kept`."""
        kept, order = super().choose(statistics, plan)
        arms, scores = statistics.arms, self.scored(statistics)
        for _, rows in arms.groups():
            for units in np.unique(arms.units[rows]):
                equals = rows[arms.units[rows] == units]  # arms that may change places
                fixed = rows[~kept[rows] & (arms.units[rows] != units)]
                kept[equals] = exchange(statistics.gradients[equals], kept[equals], statistics.gradients[fixed].sum(0))
                order[np.isin(order, equals)] = equals[np.lexsort((scores[equals], kept[equals]))]
        return kept, order


def exchange(gradients: Floats, kept: Bools, fixed: Floats) -> Bools:
    """One pass of exchanges between kept and removed arms, none of which raises the objective.

    Args:
        gradients: [k, n], of the arms that may change places.
        kept: [k].
        fixed: [n], sum over the arms that are removed whatever happens here.

    Returns:
        [k], as many kept as before.
    """
    squares = np.square(gradients).sum(1)
    removed, kept = ~kept, kept.copy()
    total = fixed + gradients[removed].sum(0)
    if not removed.any():
        return kept
    for arm in np.flatnonzero(kept)[np.argsort(squares[kept], kind="stable")]:
        removed[arm] = True
        total = total + gradients[arm]
        out = np.flatnonzero(removed)
        back = out[np.argmin(squares[out] - 2 * gradients[out] @ total)]  # norm(total - g)^2 less norm(total)^2
        removed[back] = False
        total = total - gradients[back]
    return ~removed
