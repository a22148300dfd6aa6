"""Optimal brain surgeon on whole arms: what is kept is refitted after every removal."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from hf_mabprune.architectures import Site
from hf_mabprune.architectures.sites import members
from hf_mabprune.criteria.base import CRITERIA, Criterion
from hf_mabprune.criteria.statistics import CalibrationStatistics, Floats
from hf_mabprune.effects.obs import increases
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
    increases first makes the sum of all layers' errors small. The weights are refitted for the scores alone.

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
        errors = np.empty(len(statistics.arms))
        for site, rows in statistics.sites:
            if site.kind == "expert":
                errors[rows] = [self._whole(statistics, part) for part in members(site, statistics.all_sites)]
                continue
            weight, second = statistics.weight(site), statistics.moments[site.name].second.cpu().numpy()
            # E|W h|^2 = tr(W E[h h'] W'), the mean squared output of the layer without its bias
            scale = max(float((weight @ second * weight).sum()), np.finfo(float).tiny) if self.relative else 1.0
            size = int(statistics.arms.units[rows].max()) * site.unit_size
            errors[rows] = increases(weight, second, size, len(rows), self.damping) / scale
        return errors

    def _whole(self, statistics: CalibrationStatistics, site: Site) -> float:
        """The error of all columns together, with nothing in their place: of an expert that goes."""
        weight, second = statistics.weight(site), statistics.moments[site.name].second.cpu().numpy()
        return 1.0 if self.relative else float((weight @ second * weight).sum())
