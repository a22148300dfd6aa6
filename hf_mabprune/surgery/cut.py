"""Keep indices -> a smaller model: Linear modules, attributes and config, together.

Symbols: D hidden, F FFN neurons, H query heads, Dh head size.
"""

import copy
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from hf_mabprune.architectures import Architecture, Site, architecture_of, linear_at
from hf_mabprune.arms import KeepIndices
from hf_mabprune.checkpoints import modeling_pruned

Layout = Literal["uniform", "per_layer"]


def prune_copy(model: PreTrainedModel, keep: KeepIndices, layout: Layout) -> PreTrainedModel:
    """A copy of the model with everything cut out that `keep` does not keep; the model itself stays as it is.

    Only the cut modules are built anew, so memory peaks at the model plus the smaller copy. Tied weights stay tied.

    Args:
        model: A supported model.
        keep: Unit indices that stay; layers that it does not name stay whole.
        layout: `uniform` gives the stock class with a stock config; `per_layer` the class that travels with the
            checkpoint.

    Raises:
        ValueError: If a key-value group would be cut in part, a layer would be left empty, or the layout cannot
            express the sizes.
    """
    architecture = architecture_of(model)
    kept = {site: _kept(site, keep) for site in architecture.sites(model)}
    sizes = {site: len(units) for site, units in kept.items()}
    config = (
        uniform_config(architecture, model.config, sizes)
        if layout == "uniform"
        else _per_layer_config(architecture, model, sizes)
    )
    replaced: dict[int, Any] = {id(model.config): config}
    for site, units in kept.items():
        for path in site.linears():
            linear = linear_at(model, path)
            replaced[id(linear)] = _cut(linear, path, site, units)
    small = copy.deepcopy(model, replaced)
    for site in kept:
        for path, names in site.attributes.items():
            module = small.base_model.get_submodule(path)
            for name, size in names.items():
                setattr(module, name, site.sizes(sizes[site])[size])
    if layout == "per_layer":
        small.__class__ = modeling_pruned.model_class(type(model))
        small.config.architectures = [type(small).__name__]
    return small


def uniform_config(architecture: Architecture, config: PretrainedConfig, sizes: dict[Site, int]) -> PretrainedConfig:
    """The stock config of a model with the same sizes in every layer.

    Raises:
        ValueError: If layers differ, or the family's config cannot say the sizes.
    """
    widths, heads = ({size for site, size in sizes.items() if site.kind == kind} for kind in ("neuron", "head"))
    for name, found in (("neurons", widths), ("heads", heads)):
        if len(found) != 1:
            raise ValueError(f"layout uniform needs the same number of {name} in every layer, got {sorted(found)}")
    if isinstance(config, modeling_pruned.PerLayerConfig):
        raise ValueError("the model has per-layer sizes already: use layout per_layer")
    return architecture.uniform_config(config, widths.pop(), heads.pop())


def may_have_bias(model: PreTrainedModel, site: Site) -> bool:
    """Whether a site's output projection has a bias, or can be given one that the checkpoint still says."""
    if linear_at(model, site.output).bias is not None or isinstance(model, modeling_pruned.PerLayerModel):
        return True
    return site.kind in architecture_of(model).bias_fields


def declare_biases(model: PreTrainedModel, given: Sequence[Site]) -> None:
    """Makes a model's config say the biases that output projections were given after they were built, in place.

    A stock config says them for all projections of a kind in all layers, so the others get zeros; the plan of a
    per-layer config names the projections themselves.

    Args:
        given: Sites whose output projections got a bias that they did not have.
    """
    if not given:
        return
    if isinstance(model.config, modeling_pruned.PerLayerConfig):
        plan = model.config.mabprune
        plan["biases"] = sorted({*plan.get("biases", ()), *(site.output for site in given)})
        return
    architecture = architecture_of(model)
    for kind in {site.kind for site in given}:
        setattr(model.config, architecture.bias_fields[kind], True)
        for path in [path for site in architecture.sites(model) if site.kind == kind for path in site.linears()]:
            linear = linear_at(model, path)
            if linear.bias is None:
                zeros = linear.weight.new_zeros(linear.out_features)
                linear.bias = nn.Parameter(zeros, requires_grad=linear.weight.requires_grad)


def _kept(site: Site, keep: KeepIndices) -> np.ndarray:
    """The units of a site that stay, checked."""
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


def _cut(linear: nn.Linear, path: str, site: Site, units: np.ndarray) -> nn.Linear:
    """The kept rows of an input projection, or the kept columns of the output projection."""
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


def _per_layer_config(
    architecture: Architecture, model: PreTrainedModel, sizes: dict[Site, int]
) -> PretrainedConfig:
    """The stock config's contents under a per-layer type, with the plan and the ecosystem's `per_layer_config`."""
    modules: dict[str, list[int]] = {}
    attributes: dict[str, dict[str, int]] = {}
    per_layer: dict[int, dict[str, int]] = {}
    for site, units in sizes.items():
        for path in site.linears():
            linear = linear_at(model, path)
            rows = site.sizes(units)["groups"] * site.unit_size if path in site.per_group else units * site.unit_size
            modules[path] = [linear.out_features, rows] if path == site.output else [rows, linear.in_features]
        for path, names in site.attributes.items():
            attributes[path] = {name: site.sizes(units)[size] for name, size in names.items()}
        per_layer.setdefault(site.layer, {}).update(architecture.layer_fields(site, units))
    stock = type(model.config)
    settings = model.config.to_dict()
    for own in ("model_type", "transformers_version", "auto_map"):
        settings.pop(own, None)
    earlier = settings.get("mabprune") or {}
    settings["mabprune"] = {"format": modeling_pruned.FORMAT, "modules": modules, "attributes": attributes}
    if "biases" in earlier:
        settings["mabprune"]["biases"] = earlier["biases"]
    settings["per_layer_config"] = per_layer
    new = modeling_pruned.config_class(stock)(**settings)
    new.auto_map = modeling_pruned.auto_map(modeling_pruned.stock_config_class(stock))
    new._attn_implementation = model.config._attn_implementation
    new.name_or_path = model.config.name_or_path
    return new
