"""Diagonal of the empirical Fisher information of the gates."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from hf_mabprune.criteria.base import CRITERIA, Criterion
from hf_mabprune.criteria.statistics import CalibrationStatistics, Floats
from hf_mabprune.registry import option


@CRITERIA.register("fisher")
@dataclass(kw_only=True)
class Fisher(Criterion):
    """sum_b (dL_b/dm)^2 over mini-batches b, m the one gate of all columns of the arm.

    Source: Kwon et al. 2022, arXiv 2204.09656, section 4.1 and released code, which squares the gradients of batches.
    Budgets by cost differ: there the best split between heads and neurons is searched, here score per cost decides.
    """

    passes: ClassVar[tuple[int, int]] = (1, 1)

    per_example: bool = option(False, "square the gradient of each example instead of each batch")

    def scores(self, statistics: CalibrationStatistics) -> Floats:
        return np.square(statistics.example_gradients if self.per_example else statistics.gradients).sum(1)
