"""Router frequency: how often an expert is asked."""

from dataclasses import dataclass
from typing import ClassVar

from hf_mabprune.criteria.base import CRITERIA, Criterion
from hf_mabprune.criteria.statistics import CalibrationStatistics, Floats


@CRITERIA.register("router_frequency")
@dataclass(kw_only=True)
class RouterFrequency(Criterion):
    """Part of the positions that the router sends to an expert; of experts alone.

    Source: the baseline "frequency" of Lasby et al. 2025, arXiv 2510.13999. Positions of padding are left out.
    """

    passes: ClassVar[tuple[int, int]] = (1, 0)
    kinds: ClassVar[tuple[str, ...]] = ("expert",)

    def scores(self, statistics: CalibrationStatistics) -> Floats:
        routed = statistics.routed
        return statistics.by_expert({name: each.positions / each.all_positions for name, each in routed.items()})
