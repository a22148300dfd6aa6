"""First-order Taylor expansion of the loss."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from hf_mabprune.arms import KINDS
from hf_mabprune.criteria.base import CRITERIA, Criterion
from hf_mabprune.criteria.statistics import CalibrationStatistics, Floats


@CRITERIA.register("taylor")
@dataclass(kw_only=True)
class Taylor(Criterion):
    """|mean_b dL_b/dm|, m the one gate of all columns of the arm.

    The sum over a block is taken before the absolute value: it is the first-order change of the loss when all of it
    goes. It equals |sum W * dL/dW| over the arm's columns of the output projection, the weight form of the source.

    Source: Molchanov et al. 2017, arXiv 1611.06440, section 2.2; for gates of heads Michel et al. 2019, arXiv
    1905.10650, section 4.1. Both take the absolute value on each example, before the mean.
    """

    passes: ClassVar[tuple[int, int]] = (1, 1)
    kinds: ClassVar[tuple[str, ...]] = KINDS

    def scores(self, statistics: CalibrationStatistics) -> Floats:
        return np.abs(statistics.gradients.mean(1))
