"""Optimal brain surgeon on whole arms: what is kept is refitted after every removal."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from hf_mabprune.architectures import Site
from hf_mabprune.architectures.sites import members
from hf_mabprune.criteria.base import CRITERIA, Criterion
from hf_mabprune.criteria.statistics import CalibrationStatistics, Floats
from hf_mabprune.effects.obs import increases
from hf_mabprune.progress import over
from hf_mabprune.registry import option


@CRITERIA.register("obs")
@dataclass(kw_only=True)
class OBS(Criterion):
    """The error of a layer that an arm's removal adds, in the order in which its arms go, each time the safest.

    Removing the columns S of W adds tr(W_S ([H^-1]_SS)^-1 W_S') to E norm((W - W') h)^2 + lambda norm(W - W')^2, when
    all other columns are refitted: W <- W - W_S ([H^-1]_SS)^-1 [H^-1]_S,:, and H^-1 loses S by block elimination.
    H = E[h h'] + lambda I, lambda = damping * mean of the diagonal of E[h h']; the factor 2 of the source is left out,
    so that errors are mean squared ones. An arm's score is the largest increase of its layer's error up to and
    including its own removal: never falling along the order, and comparable between layers, since taking the smallest
    increases first makes the sum of all layers' errors small. The weights are refitted for the scores alone. An
    expert's score is the error of all its columns, with nothing in their place.

    Cost: O(C^3 + D C^2) a site, and C^2 float64.

    Source: Kurtic et al. 2023 (ZipLM), arXiv 2302.04089, section 3; Hassibi & Stork 1992. ZipLM chooses sizes by a
    search over measured latencies, with errors relative to the layer's output as its prior (`relative`).

    Raises:
        ValueError: If damping is not above 0.
    """

    passes: ClassVar[tuple[int, int]] = (1, 0)

    damping: float = option(0.01, "lambda, relative to the mean of the diagonal of the second moments; above 0")
    relative: bool = option(False, "errors as fractions of the mean squared output of the layer's projection")

    def __post_init__(self) -> None:
        if not 0.0 < self.damping < np.inf:
            raise ValueError(f"damping must be finite and above 0, got {self.damping}")

    def scores(self, statistics: CalibrationStatistics) -> Floats:
        costs = np.empty(len(statistics.arms))
        for site, rows in over(statistics.sites, "costs of layers", "sites"):
            if site.kind == "expert":
                parts = members(site, statistics.all_sites)
                costs[rows] = [1.0 if self.relative else self._scale(statistics, part) for part in parts]
                continue
            second = statistics.moments[site.name].second
            size = int(statistics.arms.units[rows].max()) * site.unit_size
            costs[rows] = increases(statistics.weight(site), second, size, len(rows), self.damping)
            if self.relative:
                costs[rows] /= max(self._scale(statistics, site), np.finfo(float).tiny)
        return costs

    def _scale(self, statistics: CalibrationStatistics, site: Site) -> float:
        """E|W h|^2 = tr(W E[h h'] W'), the mean squared output of a projection without its bias."""
        weight, second = statistics.weight(site), statistics.moments[site.name].second.cpu().numpy()
        return float((weight @ second * weight).sum())
