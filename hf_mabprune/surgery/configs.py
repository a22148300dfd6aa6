"""Writes the config of a cut model that has sizes of its own in every layer, and the plan in it."""

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from hf_mabprune.architectures import Site, architecture_of
from hf_mabprune.architectures.projections import cut_shapes, source_of
from hf_mabprune.architectures.sites import GROUPS
from hf_mabprune.arms import Ints
from hf_mabprune.checkpoints import modeling_pruned

Plan = dict[str, Any]
PARTS = ("attributes", "settings", "arguments", "copies", "empty")  # of a plan, beside the shapes of parameters


def per_layer_config(dense: PreTrainedModel, kept: Sequence[tuple[Site, Ints]]) -> PreTrainedConfig:
    """Puts the stock config's contents under a per-layer type, with the sizes of each layer said twice.

    `mabprune` is the plan that `modeling_pruned.py` builds the model by; `per_layer_config` is the schema of
    transformers, in the family's own field names, for models that it can describe: those of one stack.

    Args:
        dense: Model before the cut; what the plan of a per-layer one says besides still holds.
        kept: All sites, and the units that stay in each.
    """
    stock = type(dense.config)
    settings = dense.config.to_dict()
    for own in ("model_type", "transformers_version", "auto_map"):
        settings.pop(own, None)
    settings["mabprune"] = merged(getattr(dense.config, "mabprune", None), make_plan(dense, touched(kept)))
    if fields := _fields_by_layer(dense, kept):
        settings["per_layer_config"] = fields
    new = _made(modeling_pruned.config_class(stock), settings, dense.config)
    new.auto_map = modeling_pruned.auto_map(modeling_pruned.stock_config_class(stock))
    return new


def rebuilt(config: PreTrainedConfig, settings: dict[str, Any]) -> PreTrainedConfig:
    """Makes a config of the class of another one, from other settings; how its model runs stays the same.

    Args:
        config: Config, stock or per-layer.
        settings: All that it says, changed.
    """
    for own in ("model_type", "transformers_version"):
        settings.pop(own, None)
    return _made(type(config), settings, config)


def _made(kind: type[PreTrainedConfig], settings: dict[str, Any], like: PreTrainedConfig) -> PreTrainedConfig:
    """Makes a config from settings, for a model that runs as that of another config does."""
    new = kind(**settings)
    new._attn_implementation = like._attn_implementation
    new._experts_implementation = like._experts_implementation
    new.name_or_path = like.name_or_path
    return new


def touched(kept: Sequence[tuple[Site, Ints]]) -> list[tuple[Site, Ints]]:
    """Picks the sites where something changes: those that are cut, and those that are handed something by them."""
    alike = {id(site.spec) for site, units in kept if site.spec.arguments and len(units) < site.units}
    return [(site, units) for site, units in kept if len(units) < site.units or id(site.spec) in alike]


def make_plan(dense: PreTrainedModel, kept: Sequence[tuple[Site, Ints]]) -> Plan:
    """Says what `modeling_pruned.resize` has to change in the stock model.

    Args:
        dense: Model before the cut.
        kept: Sites where something changes, and the units that stay in each.
    """
    plan: Plan = {"format": modeling_pruned.FORMAT, "parameters": cut_shapes(dense.base_model, list(kept))}
    plan |= {part: {} for part in PARTS}
    values: dict[str, Any]
    for site, units in kept:
        if not len(units):
            plan["empty"] |= {site.prefix + path: outputs for path, outputs in site.spec.empties.items()}
            continue
        sizes: dict[Any, Any] = site.sizes(len(units))
        before: dict[Any, Any] = site.sizes(site.units)
        for path, names in site.spec.attributes.items():
            values = {name: sizes.get(size, size) for name, size in names.items()}
            values = {name: value for name, value in values.items() if value != before.get(names[name])}
            if values:
                plan["attributes"].setdefault(site.prefix + path, {}).update(values)
        for path, fields in site.spec.settings.items():
            values = {name: sizes[size] for name, size in fields.items()}
            plan["settings"].setdefault(site.prefix + path, {}).update(values)
        for path, arguments in site.spec.arguments.items():
            values = {name: units.tolist() if select else None for name, select in arguments.items()}
            plan["arguments"].setdefault(site.prefix + path, {}).update(values)
        for path in site.spec.copies:
            if source_of(site, path) != site.prefix + path:
                plan["copies"][site.prefix + path] = source_of(site, path)
    return plan


def merged(former: Plan | None, plan: Plan) -> Plan:
    """Adds the plan of a cut to that of the model it was made from, where that had one."""
    earlier = {} if former is None else modeling_pruned.read_plan(former)
    whole: Plan = {"format": modeling_pruned.FORMAT}
    for part in ("parameters", *PARTS):
        ours, theirs = plan[part], earlier.get(part, {})
        if part == "arguments":  # entries are chosen from those that were chosen before
            ours = {path: _composed(theirs.get(path, {}), chosen) for path, chosen in ours.items()}
        nested = {path: {**theirs[path], **ours[path]} for path in ours if path in theirs and part in PARTS[:3]}
        whole[part] = {**theirs, **ours, **nested}
        if part in PARTS[:3]:  # of what has nothing left there is nothing to say
            whole[part] = {path: values for path, values in whole[part].items() if path not in plan["empty"]}
    return whole


def _composed(earlier: dict[str, Any], chosen: dict[str, Any]) -> dict[str, Any]:
    return {
        name: [earlier[name][place] for place in entries] if entries and earlier.get(name) else entries
        for name, entries in chosen.items()
    }


def _fields_by_layer(dense: PreTrainedModel, kept: Sequence[tuple[Site, Ints]]) -> dict[int, dict[str, int]]:
    """Says the sizes of each layer in the family's own field names; nothing where layers are of several stacks, or run
    several times."""
    stacks = {layer.stack for layer in architecture_of(dense).layers(dense)}
    if len(stacks) > 1 or any(stack.shared for stack in stacks) or not hasattr(dense.config, "num_hidden_layers"):
        return {}
    fields: dict[int, dict[str, int]] = {}
    for site, units in kept:
        of_layer = fields.setdefault(site.layer, {})
        if site.spec.units:
            of_layer[site.spec.units] = len(units)
        if site.spec.groups:
            of_layer[site.spec.groups] = site.sizes(len(units))[GROUPS]
    return fields
