"""REAP: how much an expert adds where it is asked."""

from dataclasses import dataclass
from typing import ClassVar

from hf_mabprune.criteria.base import CRITERIA, Criterion
from hf_mabprune.criteria.statistics import CalibrationStatistics, Floats


@CRITERIA.register("reap")
@dataclass(kw_only=True)
class Reap(Criterion):
    """1 / |X| * sum over x in X of g(x) * |f(x)|_2, X the positions sent to an expert; of experts alone.

    With f(x) what the expert gives at a position, and g(x) what the router multiplies it by. An expert that nothing is
    sent to has 0.

    Source: Lasby et al. 2025, arXiv 2510.13999, equation 9. There the same share goes from every layer; here the plan
    decides. Biases of experts and positions of padding are left out.
    """

    passes: ClassVar[tuple[int, int]] = (1, 0)
    kinds: ClassVar[tuple[str, ...]] = ("expert",)

    def scores(self, statistics: CalibrationStatistics) -> Floats:
        return statistics.by_expert({name: each.added for name, each in statistics.routed.items()})
