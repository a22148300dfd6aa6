"""Size of the weights."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from hf_mabprune.architectures import Site
from hf_mabprune.criteria.base import CRITERIA, Criterion
from hf_mabprune.criteria.statistics import CalibrationStatistics, Floats, Ints
from hf_mabprune.registry import option


@CRITERIA.register("magnitude")
@dataclass(kw_only=True)
class Magnitude(Criterion):
    """norm(W[:, S])^2, W the output projection and norm Frobenius's.

    Squared, arms of one size keep the order that their norms give them, and scores add up over columns: under a budget
    in parameters arms compare by their mean squared weight. With `inputs`, the geometric mean of this and of the same
    of the rows of every projection that makes h_S (gate and up; query, key and value), which orders the arms of one
    kind as the product of the norms does, on a scale that does not depend on how many projections there are.

    Source: the norm of what goes as in Li et al. 2017, arXiv 1608.08710, section 3.1 (there L1, of filters).
    """

    passes: ClassVar[tuple[int, int]] = (0, 0)

    inputs: bool = option(False, "multiply by the norms of the rows that make the arm's columns")

    def scores(self, statistics: CalibrationStatistics) -> Floats:
        scores = np.empty(len(statistics.arms))
        for site, rows in statistics.sites:
            scores[rows] = self._at(statistics, site, rows)
        return scores

    def _at(self, statistics: CalibrationStatistics, site: Site, rows: Ints) -> Floats:
        """Scores of the arms of one site."""
        squares = [np.square(statistics.weight(site.output)).sum(0)]
        if self.inputs:
            makers = (*site.per_unit, *site.per_group)
            squares += [np.square(statistics.weight(path)).sum(1) for path in makers]
        norms = [statistics.sums_at(site, rows, values) for values in squares]
        return np.prod([norm ** (1 / len(norms)) for norm in norms], axis=0)
