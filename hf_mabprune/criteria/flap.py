"""FLAP: fluctuation of the activations times size of the weights, comparable between layers."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from hf_mabprune.architectures import Site
from hf_mabprune.criteria.base import CRITERIA, Criterion
from hf_mabprune.criteria.statistics import CalibrationStatistics, Floats
from hf_mabprune.registry import option


@CRITERIA.register("flap")
@dataclass(kw_only=True)
class Flap(Criterion):
    """mean over j in S of z_j, z the standardisation over the columns of a site of Var(h_j) * norm(W[:, j])^2.

    Each layer's FFN and attention are standardised apart; a block or head is the mean of its columns. Scores are
    relative to the layer and may be negative, so arms compare whatever they cost, as in the source.

    Source: An et al. 2023, arXiv 2312.11983, metric WIFV and structure AL-AM, and released code. Blocks of neurons are
    this project's. The bias that makes up for what went is left to compensation.
    """

    passes: ClassVar[tuple[int, int]] = (1, 0)
    per_cost: ClassVar[bool] = False

    square_heads: bool = option(False, "square attention's metric before it is standardised, as in the released code")

    def scores(self, statistics: CalibrationStatistics) -> Floats:
        def standardised(site: Site) -> Floats:
            variance = statistics.moments[site.name].variance().cpu().numpy()
            metric = variance * np.square(statistics.weight(site)).sum(0)
            if self.square_heads and site.kind == "head":
                metric = np.square(metric)
            return (metric - metric.mean()) / max(metric.std(ddof=1), np.finfo(float).tiny)

        return statistics.sums(standardised) / statistics.sums(lambda site: np.ones(site.columns))
