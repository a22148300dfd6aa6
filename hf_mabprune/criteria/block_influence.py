"""Block influence: how much a layer turns what it is given."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from hf_mabprune.arms import LAYER
from hf_mabprune.criteria.base import CRITERIA, Criterion
from hf_mabprune.criteria.statistics import CalibrationStatistics, Floats


@CRITERIA.register("block_influence")
@dataclass(kw_only=True)
class BlockInfluence(Criterion):
    """1 - E[x . y / (|x| |y|)], x [D] what a layer is given at a position and y [D] what it gives; of layers alone.

    Source: Men et al. 2024 (ShortGPT), arXiv 2403.03853, equation 1; layers compare whatever they cost, as there.
    Positions of padding are left out.
    """

    passes: ClassVar[tuple[int, int]] = (1, 0)
    per_cost: ClassVar[bool] = False
    kinds: ClassVar[tuple[str, ...]] = (LAYER,)

    def scores(self, statistics: CalibrationStatistics) -> Floats:
        cosines = statistics.cosines
        return np.array([1 - cosines[name] for name in statistics.arms.site])
