"""Wanda, structured: size of the weights times size of the activations."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from hf_mabprune.architectures import Site
from hf_mabprune.criteria.base import CRITERIA, Criterion
from hf_mabprune.criteria.statistics import CalibrationStatistics, Floats


@CRITERIA.register("wanda_sp")
@dataclass(kw_only=True)
class WandaSP(Criterion):
    """sum over j in S of mean_i |W_ij| * sqrt(E h_j^2).

    Source: Sun et al. 2023, arXiv 2306.11695, equation 1, in the structured form of the code released with An et al.
    2023, arXiv 2312.11983 (mean over output rows, sum over a head's columns). There the same share goes from every
    layer and later layers see the pruned ones before them; here the plan decides, and the model stays dense.
    """

    passes: ClassVar[tuple[int, int]] = (1, 0)

    def scores(self, statistics: CalibrationStatistics) -> Floats:
        def columns(site: Site) -> Floats:
            second = statistics.moments[site.name].second.diagonal().cpu().numpy()
            return np.abs(statistics.weight(site)).mean(0) * np.sqrt(second)

        return statistics.sums(columns)
