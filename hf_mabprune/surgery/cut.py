"""Makes the smaller model from the dense one and the keep indices: Linear modules, attributes and config, together.

Symbols: D hidden, F FFN neurons, H query heads, G key-value heads, Dh head size.
"""

import copy
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from hf_mabprune.architectures import Site, architecture_of, linear_at
from hf_mabprune.arms import Ints, KeepIndices
from hf_mabprune.checkpoints import modeling_pruned
from hf_mabprune.surgery.configs import per_layer_config, uniform_config

Layout = Literal["uniform", "per_layer"]


def cut(dense: PreTrainedModel, keep: KeepIndices, layout: Layout) -> PreTrainedModel:
    """Copies a model without what `keep` does not keep; the dense model stays as it is.

    Only the cut modules are built anew, so memory peaks at the dense model plus the smaller copy. Tied weights stay
    tied. `surgery.pieces` gives the same weights a layer at a time, without a second model.

    Args:
        dense: Supported model.
        keep: Unit indices that stay; layers that it does not name stay whole.
        layout: `uniform` gives the stock class with a stock config; `per_layer` the class that travels with the
            checkpoint.

    Raises:
        ValueError: If a key-value group would be cut in part, a layer would be left empty, or the layout cannot
            express the sizes.
    """
    # deepcopy takes what its memo holds for an object instead of copying that object.
    copies: dict[int, Any] = {id(dense.config): smaller_config(dense, keep, layout)}
    units: dict[Site, int] = {}
    for site, projections in cut_sites(dense, keep):
        copies.update({id(linear_at(dense, path)): linear for path, linear in projections.items()})
        units[site] = projections[site.output].in_features // site.unit_size
    small = copy.deepcopy(dense, copies)
    for site in units:
        for path, attributes in site.attributes.items():
            module = small.base_model.get_submodule(path)
            for name, size in attributes.items():
                setattr(module, name, site.sizes(units[site])[size])
    small.__class__ = smaller_class(dense, layout)
    return small


def cut_sites(dense: PreTrainedModel, keep: KeepIndices) -> Iterator[tuple[Site, dict[str, nn.Linear]]]:
    """Cuts the projections of one site after the other, each site when it is asked for.

    Args:
        dense: Supported model; it is not changed.
        keep: Unit indices that stay; layers that it does not name stay whole.

    Returns:
        Iterator over sites, layer by layer, with path -> smaller projection. All of `keep` is checked at once.

    Raises:
        ValueError: If a key-value group would be cut in part, or a layer would be left empty.
    """
    kept = _kept_units(dense, keep)
    return (
        (site, {path: _cut_projection(linear_at(dense, path), path, site, units) for path in site.linears()})
        for site, units in kept.items()
    )


def smaller_config(dense: PreTrainedModel, keep: KeepIndices, layout: Layout) -> PretrainedConfig:
    """Gives the config of the smaller model without building it; arguments and errors as those of `cut`."""
    units = {site: len(kept) for site, kept in _kept_units(dense, keep).items()}
    architecture = architecture_of(dense)
    if layout == "uniform":
        return uniform_config(architecture, dense.config, units)
    config = per_layer_config(architecture, dense, units)
    config.architectures = [smaller_class(dense, layout).__name__]
    return config


def smaller_class(dense: PreTrainedModel, layout: Layout) -> type[PreTrainedModel]:
    """Gives the class of the smaller model: the stock one, or the one that travels with a per-layer checkpoint."""
    return type(dense) if layout == "uniform" else modeling_pruned.model_class(type(dense))


def _kept_units(dense: PreTrainedModel, keep: KeepIndices) -> dict[Site, Ints]:
    """Lists the units that stay at every site of a model, checked."""
    return {site: _kept_at(site, keep) for site in architecture_of(dense).sites(dense)}


def _kept_at(site: Site, keep: KeepIndices) -> Ints:
    """Lists the units of a site that stay, sorted; raises ValueError where they cannot be cut out."""
    units = np.unique(keep.of(site.kind).get(site.layer, np.arange(site.units)))
    if len(units) == 0:
        raise ValueError(f"layer {site.layer} would keep no {site.kind}s: at least one must stay")
    if units[0] < 0 or units[-1] >= site.units:
        raise ValueError(f"layer {site.layer} has {site.units} {site.kind}s, keep indices reach {units[-1]}")
    if len(np.unique(units // site.group)) * site.group != len(units):
        raise ValueError(
            f"layer {site.layer}: query heads that share a key-value head go together, in groups of {site.group}"
        )
    return units


def _cut_projection(linear: nn.Linear, path: str, site: Site, units: Ints) -> nn.Linear:
    """Builds a projection with the kept rows of an input projection, or the kept columns of the output projection.

    Unit u holds the rows (columns) u * Dh ... u * Dh + Dh - 1, with Dh = 1 for neurons; keys and values have one such
    block a group of H / G query heads.
    """
    blocks = np.unique(units // site.group) if path in site.per_group else units
    index = torch.as_tensor(
        (blocks[:, None] * site.unit_size + np.arange(site.unit_size)).ravel(), device=linear.weight.device
    )
    rows = path != site.output
    weight = linear.weight.detach().index_select(0 if rows else 1, index)
    bias = linear.bias.detach() if linear.bias is not None else None
    small = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    small.weight = nn.Parameter(weight.contiguous(), requires_grad=linear.weight.requires_grad)
    if bias is not None:
        small.bias = nn.Parameter(
            bias.index_select(0, index) if rows else bias.clone(), requires_grad=linear.bias.requires_grad
        )
    return small.train(linear.training)
