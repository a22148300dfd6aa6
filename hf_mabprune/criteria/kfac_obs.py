"""Optimal brain surgeon on whole arms, with errors measured at the outputs of the model."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from hf_mabprune.architectures.sites import members
from hf_mabprune.criteria.base import CRITERIA, Criterion
from hf_mabprune.criteria.statistics import CalibrationStatistics, Floats
from hf_mabprune.effects.obs import increases
from hf_mabprune.effects.refit_costs import in_outputs, whole_cost
from hf_mabprune.registry import option


@CRITERIA.register("kfac_obs")
@dataclass(kw_only=True)
class KfacOBS(Criterion):
    """As obs, but a change dW costs 1/2 tr(G dW A dW') and not tr(dW H dW'), G and A as in `kfac.KfacFactors`.

    So an arm's score is the KL divergence from the dense model, in nats, that its removal adds when all other
    columns of its layer are refitted, to second order; comparable between layers, FFNs and attention. Where the
    projection may have a bias, which takes up the means, A is centred. An expert's is that of all its columns, with
    nothing in their place.

    Source: van der Ouderaa et al. 2024, "The LLM Surgeon", arXiv 2312.17244, has OBS on rows and columns with
    Kronecker factors of the empirical Fisher information of the loss. Here the factors are those of the KL divergence,
    and inputs are weighted by how much each position bears on the outputs.

    Raises:
        ValueError: If damping is not above 0.
    """

    passes: ClassVar[tuple[int, int | None]] = (1, None)  # one backward pass a coordinate of the outputs

    damping: float = option(0.01, "lambda, relative to the mean of the diagonal of A; above 0")

    def __post_init__(self) -> None:
        if not 0.0 < self.damping < np.inf:
            raise ValueError(f"damping must be finite and above 0, got {self.damping}")

    def scores(self, statistics: CalibrationStatistics) -> Floats:
        costs = np.empty(len(statistics.arms))
        for site, rows in statistics.sites:
            if site.kind == "expert":
                parts = members(site, statistics.all_sites)
                factor = statistics.kfac_factors
                costs[rows] = [whole_cost(statistics.model, part, factor[part.name]) for part in parts]
                continue
            # root(G) W [D, C], A [C, C]
            weight, second = in_outputs(statistics.model, site, statistics.kfac_factors[site.name])
            size = int(statistics.arms.units[rows].max()) * site.unit_size
            costs[rows] = increases(weight, second, size, len(rows), self.damping) / 2
        return costs
