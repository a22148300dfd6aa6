"""Makes the smaller model from the dense one and the keep indices: parameters, attributes and config, together.

Symbols: D hidden, F FFN neurons, H query heads, G key-value heads, E experts.
"""

import copy
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, modeling_utils

from hf_mabprune.architectures import Site, architecture_of
from hf_mabprune.architectures.projections import cut_parameters
from hf_mabprune.architectures.sites import part_at
from hf_mabprune.architectures.stock import counted, stock_config
from hf_mabprune.arms import Ints, KeepIndices
from hf_mabprune.checkpoints import modeling_pruned
from hf_mabprune.checkpoints.dequantise import packs_when_saved
from hf_mabprune.checkpoints.offload import all_away, offload_of
from hf_mabprune.surgery.configs import make_plan, per_layer_config, touched
from hf_mabprune.surgery.layers import Stay, check_built, layers_gone, shorter_config, without_layers

Layout = Literal["uniform", "per_layer"]


def cut(dense: PreTrainedModel, keep: KeepIndices, layout: Layout, passing: bool = False) -> PreTrainedModel:
    """Copies a model without what `keep` does not keep; the dense model stays as it is.

    Only the cut parameters are made anew, so memory peaks at the dense model plus the smaller copy. Tied weights stay
    tied. `surgery.pieces` gives the same weights a layer at a time, without a second model. The copy of a model that
    brings its layers in does so too: its matrices that are cut lie where the dense ones lie, and it shares the others.

    Args:
        dense: Supported model.
        keep: Unit indices that stay, by name of the site; sites that it does not name stay whole.
        layout: `uniform` gives the stock class with a stock config; `per_layer` the class that travels with the
            checkpoint.
        passing: Whether the copy is refitted and measured and no more: then it shares with the dense model the
            matrices that are not cut, which a refit never writes to.

    Raises:
        ValueError: If a key-value group would be cut in part, a site is unknown or would be left with less than it can
            do without, experts of a layer would differ in width, or the layout cannot express the sizes.
    """
    gone, rest = layers_gone(dense, keep)
    if gone:
        return _cut_whole_layers(dense, gone, rest, layout, passing or offload_of(dense) is not None)
    kept, base = kept_units(dense, keep), dense.base_model
    changed = touched(kept)
    smaller = cut_parameters(base, changed, all_away(dense))
    stay = {path: part_at(base, path) for path in smaller}  # None: the dense model has none there
    # deepcopy takes what its memo holds for an object instead of copying that object.
    copies: dict[int, Any] = {id(dense.config): _config(dense, kept, layout)}
    copies |= {id(stay[path]): parameter for path, parameter in smaller.items() if stay[path] is not None}
    if passing or offload_of(dense):
        whole = [matrix for matrix in dense.parameters() if matrix.ndim > 1 and id(matrix) not in copies]
        copies |= {id(matrix): nn.Parameter(matrix.detach(), matrix.requires_grad) for matrix in whole}
    small = copy.deepcopy(dense, copies)
    plan = make_plan(dense, changed)
    if layout == "uniform":  # the rest is what a stock model does by itself
        plan = {part: plan[part] for part in ("format", "parameters", "attributes")}
    else:  # of entries that were chosen before
        plan["arguments"] = small.config.mabprune["arguments"]
    modeling_pruned.resize(small.base_model, plan, base)
    for path in (path for path, old in stay.items() if old is None):
        module, _, name = path.rpartition(".")
        setattr(small.base_model.get_submodule(module), name, smaller[path])
    return _finished(small, dense, layout)


def _cut_whole_layers(
    dense: PreTrainedModel, gone: list[str], rest: KeepIndices, layout: Layout, passing: bool
) -> PreTrainedModel:
    """Copies a model without some layers, checked against what its config makes."""
    stay = Stay(dense, gone)
    small = without_layers(dense, stay, _shorter_config(dense, stay, rest, layout), passing)
    check_built(_finished(small, dense, layout), stay)
    return small


def _finished(small: PreTrainedModel, dense: PreTrainedModel, layout: Layout) -> PreTrainedModel:
    """Gives a copy of the dense model, whose config is that of the smaller one, the class that goes with a layout."""
    small.__class__ = smaller_class(dense, layout)
    # The names of the files that it was read from are ones that only stock classes read.
    if layout == "per_layer" or packs_when_saved(small):
        vars(small).pop("_weight_conversions", None)
        # Where hidden states are found is noted by the constructor of a class, which has not run, under its name.
        modeling_utils._CAN_RECORD_REGISTRY.update({str(type(small)): small._can_record_outputs})
    return small


def cut_layers(dense: PreTrainedModel, keep: KeepIndices) -> Iterator[dict[str, torch.Tensor]]:
    """Cuts the parameters of one layer after the other, each layer when it is asked for.

    Args:
        dense: Supported model; it is not changed.
        keep: As that of `cut`.

    Returns:
        Iterator over layers: path -> smaller parameter. All of `keep` is checked at once.

    Raises:
        ValueError: As `cut`.
    """
    changed = touched(kept_units(dense, keep))
    of_layer: dict[int, list[tuple[Site, Ints]]] = {}
    for site, units in changed:
        of_layer.setdefault(site.depth, []).append((site, units))
    layers = architecture_of(dense).layers(dense)
    return (cut_parameters(dense.base_model, of_layer.get(layer.depth, [])) for layer in layers)


def smaller_config(dense: PreTrainedModel, keep: KeepIndices, layout: Layout) -> PreTrainedConfig:
    """Gives the config of the smaller model without building it; arguments and errors as those of `cut`."""
    gone, rest = layers_gone(dense, keep)
    if gone:
        return _shorter_config(dense, Stay(dense, gone), rest, layout)
    return _config(dense, kept_units(dense, keep), layout)


def _shorter_config(dense: PreTrainedModel, stay: Stay, rest: KeepIndices, layout: Layout) -> PreTrainedConfig:
    """Gives the config of a model without some layers; raises ValueError where something else goes besides."""
    kept = kept_units(dense, rest)
    if touched(kept):
        raise ValueError(f"{stay.gone[0].path} goes as a whole, and units of others: cut one after the other")
    return shorter_config(_config(dense, kept, layout), stay)


def _config(dense: PreTrainedModel, kept: Sequence[tuple[Site, Ints]], layout: Layout) -> PreTrainedConfig:
    if layout == "uniform":
        return stock_config(dense, kept)
    config = per_layer_config(dense, kept)
    config.architectures = [smaller_class(dense, layout).__name__]
    return config


def smaller_class(dense: PreTrainedModel, layout: Layout) -> type[PreTrainedModel]:
    """Gives the class of the smaller model: the stock one, or the one that travels with a per-layer checkpoint."""
    return type(dense) if layout == "uniform" else modeling_pruned.model_class(type(dense))


def kept_units(dense: PreTrainedModel, keep: KeepIndices) -> list[tuple[Site, Ints]]:
    """Lists the units that stay at every site inside of layers, checked; errors as those of `cut`."""
    sites, (_, keep) = architecture_of(dense).sites(dense, empty=True), layers_gone(dense, keep)
    if strangers := sorted(keep.keys() - {site.name for site in sites}):
        raise ValueError(f"the model has no site {strangers[0]}; it has {sites[0].name}, ...")
    kept = [(site, _kept_at(dense, site, keep)) for site in sites]
    widths: dict[str, set[int]] = {}
    for site, units in kept:
        if site.tie:
            widths.setdefault(site.tie, set()).add(len(units))
    for tie, counts in widths.items():
        if len(counts) > 1:
            raise ValueError(f"{tie}: all experts of a layer keep as many neurons, got {sorted(counts)}")
    return kept


def _kept_at(dense: PreTrainedModel, site: Site, keep: KeepIndices) -> Ints:
    """Lists the units of a site that stay, sorted; raises ValueError where they cannot be cut out."""
    units = np.unique(keep.get(site.name, np.arange(site.units))).astype(np.int64)
    least = min(architecture_of(dense).least_units(dense, site), site.units)
    if len(units) < least:
        raise ValueError(f"{site.name} would keep {counted(len(units), site.kind)}: at least {least} must stay")
    if not len(units):
        return units
    if units[0] < 0 or units[-1] >= site.units:
        raise ValueError(f"{site.name} has {site.units} {site.kind}s, keep indices reach {units[-1]}")
    if len(np.unique(units // site.group)) * site.group != len(units):
        raise ValueError(
            f"{site.name}: query heads that share a key-value head go together, in groups of {site.group}"
        )
    return units
