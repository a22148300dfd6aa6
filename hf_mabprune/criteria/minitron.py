"""Minitron: size of the activations."""

from dataclasses import dataclass
from typing import ClassVar

from hf_mabprune.criteria.base import CRITERIA, Criterion
from hf_mabprune.criteria.statistics import CalibrationStatistics, Floats


@CRITERIA.register("minitron")
@dataclass(kw_only=True)
class Minitron(Criterion):
    """sum over j in S and over sequences of (mean over positions of |h_j|)^2.

    The square of the source's norm over sequences and columns: arms of one size keep their order, and scores add up.

    Source: Muralidharan et al. 2024, arXiv 2407.14679, section 2.2 (mean over positions, L2 over sequences), for heads
    and key-value groups as NVIDIA's Model Optimizer aggregates them. There ranks are within layers, which stay equal;
    here the plan decides. Positions of padding are left out.
    """

    passes: ClassVar[tuple[int, int]] = (1, 0)

    def scores(self, statistics: CalibrationStatistics) -> Floats:
        return statistics.sums(lambda site: statistics.magnitudes[site.name])
