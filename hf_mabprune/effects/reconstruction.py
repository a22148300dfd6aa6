"""What removals cost a site's own output, when all columns that stay are refitted: `obs`, for all sites of a model.

Symbols: K arms; D outputs and C columns of a projection W [D, C]; h its inputs.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel

from hf_mabprune.architectures import Site, architecture_of, projection_of
from hf_mabprune.architectures.sites import members
from hf_mabprune.arms import ArmTable
from hf_mabprune.effects.activations import Moments
from hf_mabprune.effects.obs import Floats, increases
from hf_mabprune.progress import over


def reconstruction_costs(
    model: PreTrainedModel, arms: ArmTable, moments: Mapping[str, Moments], damping: float, relative: bool = False
) -> Floats:
    """Gives the mean squared error that each arm's removal adds, in the order in which those of its site go.

    Args:
        model: Dense model.
        arms: All arms.
        moments: Of the input of each site, or of each expert that is an arm, by name.
        damping: lambda, relative to the mean of the diagonal of the second moments.
        relative: Whether errors are fractions of the mean squared output of the projection, without its bias.

    Returns:
        [K]. An expert's is that of all its columns, with nothing in their place.
    """
    everything = architecture_of(model).sites(model)
    places = {site.name: site for site in everything}
    costs = np.empty(len(arms))
    for name, rows in over(list(arms.groups()), "costs of layers", "sites"):
        site = places[name]
        if site.kind == "expert":
            parts = members(site, everything)
            costs[rows] = [1.0 if relative else _scale(*_arrays(model, part, moments)) for part in parts]
            continue
        weight, second = _arrays(model, site, moments)
        size = int(arms.units[rows].max()) * site.unit_size
        costs[rows] = increases(weight, second, size, len(rows), damping)
        costs[rows] /= max(_scale(weight, second), np.finfo(float).tiny) if relative else 1.0
    return costs


def _arrays(model: PreTrainedModel, site: Site, moments: Mapping[str, Moments]) -> tuple[Floats, NDArray[Any]]:
    """W [D, C] and E[h h'] [C, C] of a site."""
    weight = projection_of(model, site).weight.detach().double().cpu().numpy()
    return weight, moments[site.name].second.cpu().numpy()


def _scale(weight: Floats, second: NDArray[Any]) -> float:
    """E|W h|^2 = tr(W E[h h'] W'), the mean squared output without a bias."""
    return float((weight @ second * weight).sum())
