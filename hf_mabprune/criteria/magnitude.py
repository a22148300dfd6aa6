"""Size of the weights."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from hf_mabprune.architectures import Site
from hf_mabprune.architectures.sites import members
from hf_mabprune.criteria.base import CRITERIA, Criterion
from hf_mabprune.criteria.statistics import CalibrationStatistics, Floats
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
        if not self.inputs:
            return statistics.sums(lambda site: np.square(statistics.weight(site)).sum(0))
        scores = np.empty(len(statistics.arms))
        for site, rows in statistics.sites:
            if site.kind == "expert":
                parts = members(site, statistics.all_sites)
                norms = [[squares.sum() for squares in self._squares(statistics, part)] for part in parts]
                scores[rows] = [_geometric_mean(np.array(own)) for own in norms]
            else:
                sums = [statistics.sums_at(site, rows, squares) for squares in self._squares(statistics, site)]
                scores[rows] = _geometric_mean(np.stack(sums))
        return scores

    def _squares(self, statistics: CalibrationStatistics, site: Site) -> list[Floats]:
        """Squares of the weights of a site's projection, by column, and of all that makes its columns, by row."""
        return [np.square(statistics.weight(site)).sum(0), *statistics.row_squares(site)]


def _geometric_mean(values: Floats) -> Floats:
    """Of the first dimension."""
    return np.prod(values ** (1 / len(values)), axis=0)
