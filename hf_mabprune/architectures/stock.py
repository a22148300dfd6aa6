"""What a stock config can say, found by trial: the model is built from it on the meta device, and all shapes compared.

So no family has to state which sizes its configs can say, and which they only seem to.
"""

import copy
import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, cast
from weakref import WeakKeyDictionary

import numpy as np
import torch
from transformers import PreTrainedConfig, PreTrainedModel

from hf_mabprune.architectures.base import PRUNED_PREFIX, architecture_of
from hf_mabprune.architectures.projections import cut_shapes, projection_of
from hf_mabprune.architectures.sites import GROUPS, Site
from hf_mabprune.arms import Ints

Shapes = dict[str, list[int]]
_bias_fields: WeakKeyDictionary[PreTrainedModel, dict[str, str]] = WeakKeyDictionary()


def stock_config(model: PreTrainedModel, kept: Sequence[tuple[Site, Ints]]) -> PreTrainedConfig:
    """Makes the stock config of a model whose sites keep some of their units.

    Args:
        model: Stock model; its config is not changed.
        kept: All sites, and the units that stay in each.

    Raises:
        ValueError: If sites of one field differ, or no stock config says these sizes, with reason and remedy.
    """
    kind = str(model.config.model_type)
    if kind.startswith(PRUNED_PREFIX):
        raise ValueError("the model has per-layer sizes already: use layout per_layer")
    config = copy.deepcopy(model.config)
    for site, units in kept:
        if not len(units):
            raise ValueError(f"a stock {kind} config cannot say that {site.block} is gone: use per_layer")
        if len(units) != site.units and site.spec.arguments:
            raise ValueError(f"a stock {kind} config cannot say which heads share position biases: use per_layer")
        if len(units) != site.units and not site.spec.units:
            raise ValueError(f"a stock {kind} config has no field for the number of {site.kind}s: use per_layer")
    cut = {field for field, _ in _sizes([(site, units) for site, units in kept if len(units) < site.units])}
    for (field, name), counts in _sizes(kept).items():
        if len(counts) != 1:
            raise ValueError(f"layout uniform needs the same number of {name} in every layer, got {sorted(counts)}")
        if field in cut:
            _set(config, field, counts.pop())
    _state_sizes(model, config, kept)
    wanted = cut_shapes(model.base_model, [(site, units) for site, units in kept if len(units) < site.units])
    try:
        built = built_shapes(type(model), config)
    except Exception as error:  # whatever the constructors of a family raise
        raise ValueError(f"a stock {kind} config cannot say {_said(kept)}: {_line(error)}. Use per_layer") from error
    base = model.base_model.state_dict(keep_vars=True)
    for path, parameter in base.items():
        shape = wanted.get(path, list(parameter.shape))
        if path in built and built[path] != shape:
            raise ValueError(
                f"a stock {kind} config cannot say {_said(kept)}: it makes {path} {built[path]}, not {shape}. Use "
                "layout per_layer, or prune neurons only"
            )
    return config


def _sizes(kept: Sequence[tuple[Site, Ints]]) -> dict[tuple[str, str], set[int]]:
    """Collects the sizes of each config field: (field, what it counts) -> sizes."""
    sizes: dict[tuple[str, str], set[int]] = {}
    for site, units in kept:
        sizes.setdefault((site.field, f"{site.kind}s"), set()).add(len(units))
        if site.spec.groups:
            field = site.field.replace(site.spec.units, site.spec.groups)
            sizes.setdefault((field, "key-value heads"), set()).add(site.sizes(len(units))[GROUPS])
    return sizes


def _set(config: PreTrainedConfig, field: str, value: int) -> None:
    """Writes a field, `text_config.intermediate_size` for one of a sub-config."""
    *path, name = field.split(".")
    for part in path:
        config = getattr(config, part)
    setattr(config, name, value)


def _state_sizes(model: PreTrainedModel, config: PreTrainedConfig, kept: Sequence[tuple[Site, Ints]]) -> None:
    """Writes out what follows from other sizes in a stock model: head sizes, where heads go, and what a site fixes."""
    field = architecture_of(model).head_size_field
    for site, units in kept:
        if len(units) == site.units:
            continue
        own = site.stack.config_of(config)
        if field and site.kind == "head":
            setattr(own, field, site.unit_size)
        for name, value in site.spec.fixed.items():
            setattr(own, name, value)


def _said(kept: Sequence[tuple[Site, Ints]]) -> str:
    """Says the sizes in question: `3 heads`."""
    counts = {counted(len(units), site.kind): None for site, units in kept if len(units) < site.units}
    return " and ".join(counts) or "its sizes"


def counted(number: int, kind: str) -> str:
    """Says so many units of a kind: `1 head`, `2 heads`."""
    return f"{number} {kind}{'' if number == 1 else 's'}"


def _line(error: Exception) -> str:
    """The last line of an error, which says what is wrong."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()


def built_shapes(model_class: type[PreTrainedModel], config: PreTrainedConfig) -> Shapes:
    """Gives the shapes of all parameters and buffers of the base model that a config makes: path -> shape."""
    config_class: Any = type(config)
    return _built(cast(Any, model_class), config_class, config.to_json_string(use_diff=False))


@lru_cache(maxsize=256)
def _built(model_class: Any, config_class: Any, settings: str) -> Shapes:
    config = config_class(**json.loads(settings))
    with torch.device("meta"):
        built = model_class(config)
    return {path: list(tensor.shape) for path, tensor in built.base_model.state_dict(keep_vars=True).items()}


def sizes_of_field(model: PreTrainedModel, sites: Sequence[Site]) -> set[int]:
    """Finds the numbers of units below the full one that a stock config can say for sites of one field.

    Heads are tried one count after the other; of neurons and experts one count speaks for all.
    """
    others = [(site, np.arange(site.units)) for site in architecture_of(model).sites(model)]
    size, step = sites[0].units, sites[0].group
    counts = list(range(step, size, step))
    tried = counts if sites[0].kind == "head" else counts[len(counts) // 2 :][:1]
    names, said = {site.name for site in sites}, set()
    for count in tried:
        try:
            stock_config(model, [(site, np.arange(count) if site.name in names else whole) for site, whole in others])
        except ValueError:
            continue
        said.add(count)
    return said if tried == counts else set(counts) if said else set()


def bias_fields(model: PreTrainedModel) -> dict[str, str]:
    """Finds config fields that give output projections a bias where they have none: name of the site -> field."""
    if model not in _bias_fields:
        _bias_fields[model] = _find_bias_fields(model)
    return _bias_fields[model]


def _find_bias_fields(model: PreTrainedModel) -> dict[str, str]:
    sites = [site for site in architecture_of(model).sites(model) if projection_of(model, site).bias is None]
    found: dict[str, str] = {}
    for field, value in model.config.to_dict().items():
        if "bias" in field and value is False:
            config = copy.deepcopy(model.config)
            setattr(config, field, True)
            built = built_shapes(type(model), config)
            found |= {site.name: field for site in sites if f"{site.name}.bias" in built}
    return found
