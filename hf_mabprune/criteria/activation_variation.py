"""Variance of the activations."""

from dataclasses import dataclass
from typing import ClassVar

from hf_mabprune.criteria.base import CRITERIA, Criterion
from hf_mabprune.criteria.statistics import CalibrationStatistics, Floats


@CRITERIA.register("activation_variation")
@dataclass(kw_only=True)
class ActivationVariation(Criterion):
    """sum over j in S of Var(h_j): a column that hardly varies can be taken up by the bias.

    Source: Ameen & Vadera 2026, arXiv 2606.07615, compare with "greedy activation-variation pruning", which the text
    available does not define; this definition under that name is this project's.
    """

    passes: ClassVar[tuple[int, int]] = (1, 0)

    def scores(self, statistics: CalibrationStatistics) -> Floats:
        return statistics.sums(lambda site: statistics.moments[site.name].variance().cpu().numpy())
