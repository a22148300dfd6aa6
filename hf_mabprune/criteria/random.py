"""Random scores, a control."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from hf_mabprune.arms import KINDS
from hf_mabprune.criteria.base import CRITERIA, Criterion
from hf_mabprune.criteria.statistics import CalibrationStatistics, Floats


@CRITERIA.register("random")
@dataclass(kw_only=True)
class Random(Criterion):
    """Uniform in (0, 1], from the seed of the statistics; arms compare whatever they cost."""

    passes: ClassVar[tuple[int, int]] = (0, 0)
    kinds: ClassVar[tuple[str, ...]] = KINDS
    per_cost: ClassVar[bool] = False

    def scores(self, statistics: CalibrationStatistics) -> Floats:
        return 1.0 - np.random.default_rng(statistics.seed).random(len(statistics.arms))
