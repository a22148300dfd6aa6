"""Finds out which checkpoint layouts a model, its arms and a target allow, and what `auto` may choose from."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import numpy as np
from transformers import PretrainedConfig, PreTrainedModel

from hf_mabprune.architectures import Site, architecture_of
from hf_mabprune.architectures.cost import count_parameters, parameters_after
from hf_mabprune.architectures.stock import sizes_of_field, stock_config
from hf_mabprune.arms import LAYER, ArmTable
from hf_mabprune.config import PruningConfig, TargetConfig
from hf_mabprune.selection.plan import Plan
from hf_mabprune.selection.target import Limits, Quantity, make_plan, reach

MULTIPLES = ((1024, 64), (256, 8))  # least hidden size -> what FFN widths are a multiple of where nobody says
EXPERT_MULTIPLE = 8  # widths of experts: grouped products take rows of 16 bytes, in half precision as well


@dataclass(frozen=True)
class Plans:
    """Holds one plan for each layout that is within reach.

    Attributes:
        search: Plan that the search follows.
        uniform: Plan that `auto` tries on the search's order of removal; None where there is no choice.
        reason: Why the layout of `search` is what it is.
    """

    search: Plan
    uniform: Plan | None
    reason: str


def make_plans(
    model: PreTrainedModel,
    arms: ArmTable,
    totals: Mapping[str, int],
    config: PruningConfig,
    measured: Mapping[str, Quantity] = MappingProxyType({}),
) -> Plans:
    """Checks the target against the layouts, before any compute.

    Args:
        model: Dense model.
        arms: All arms of the model.
        totals: `parameters` and `macs` of the model.
        config: Settings of what is pruned: target, layout, floors and rounding.
        measured: What targets are of beside units, parameters and MACs.

    Raises:
        ValueError: If the target is out of reach in the layout asked for, or in every layout for `auto`.
    """

    def plan(layout: Literal["uniform", "per_layer"]) -> Plan:
        limits = _limits(model, arms, config, layout)
        return make_plan(arms, config.target, _with_layers(totals, model), layout, limits, measured)

    if config.layout == "uniform":
        return Plans(plan("uniform"), None, "asked for")
    if LAYER in arms.kinds() and config.layout == "auto":
        try:
            return Plans(plan("uniform"), None, "auto: whole layers go, and a stock config says how many stay")
        except ValueError as reason:
            return Plans(plan("per_layer"), None, f"auto: uniform is not possible: {reason}")
    per_layer = plan("per_layer")
    if config.layout == "per_layer":
        return Plans(per_layer, None, "asked for")
    try:
        return Plans(per_layer, plan("uniform"), "")
    except ValueError as reason:
        return Plans(per_layer, None, f"auto: uniform is not possible: {reason}")


def largest_targets(
    model: PreTrainedModel,
    arms: ArmTable,
    totals: Mapping[str, int],
    config: PruningConfig,
    measured: Mapping[str, Quantity] = MappingProxyType({}),
) -> dict[str, float]:
    """Finds the largest fraction of each quantity that the layout can remove; arguments as those of `make_plans`.

    Returns:
        Quantity -> fraction.

    Raises:
        ValueError: If the layout is not possible at all.
    """
    layout: Literal["uniform", "per_layer"] = "uniform" if config.layout == "uniform" else "per_layer"
    return reach(arms, _with_layers(totals, model), layout, _limits(model, arms, config, layout), measured)


def _with_layers(totals: Mapping[str, int], model: PreTrainedModel) -> dict[str, int]:
    """Adds the number of layers, those that stay in any case among them."""
    return {**totals, "layers": len(architecture_of(model).layers(model))}


def _limits(
    model: PreTrainedModel, arms: ArmTable, config: PruningConfig, layout: Literal["uniform", "per_layer"]
) -> Limits:
    """Works out what sites may keep: floors in units, what keeps one size, and which sizes a stock config can say.

    Raises:
        ValueError: If the family's stock config cannot say fewer of some kind, for `uniform`.
    """
    architecture = architecture_of(model)
    sites = {site.name: site for site in (*architecture.sites(model), *architecture.whole_layers(model))}
    if layout == "uniform" and LAYER in arms.kinds():
        stock_config(model, [(site, np.arange(site.units)) for site in architecture.sites(model)])
    wanted = {"neuron": config.min_neurons, "head": config.min_heads, "expert": 1, LAYER: 0}
    least = {name: architecture.least_units(model, sites[name]) for name, _ in arms.groups()}
    for kind in (kind for kind in arms.kinds() if not wanted[kind] and kind != LAYER):
        _check_can_go(model, kind, config.layout, [units for name, units in least.items() if sites[name].kind == kind])
    floors = {
        name: max(wanted[site.kind] * site.group, least[name], layout == "uniform" and site.kind != LAYER)
        for name, site in sites.items()
        if name in least
    }
    widths = [sites[name].units for name, _ in arms.groups() if sites[name].kind == "neuron"]
    multiple = width_multiple(config, model.config)
    if widths and multiple >= min(widths):
        devices = f" for tensor_parallel {config.tensor_parallel}" if config.tensor_parallel > 1 else ""
        raise ValueError(f"round_to must be below {min(widths)}, the neurons of a layer, got {multiple}{devices}")
    multiples = _shared_out([sites[name] for name, _ in arms.groups()], config.tensor_parallel)
    ties = {name: _tie(sites[name], layout) for name, _ in arms.groups()}
    fields: dict[str, list[Site]] = {}
    for name, tie in ties.items():
        if tie:
            fields.setdefault(tie, []).append(sites[name])
    sizes = {
        tie: _sizes(
            model,
            own,
            multiple if own[0].kind == "neuron" else multiples.get(own[0].name, 1),
            layout,
            config.target,
        )
        for tie, own in fields.items()
    }
    last = {
        name: cost
        for name, floor in floors.items()
        if not floor and sites[name].kind != LAYER and (cost := _last(model, sites[name], arms)) > 0
    }
    return Limits(floors, {name: tie for name, tie in ties.items() if tie}, sizes, last, multiples)


def _shared_out(sites: Sequence[Site], devices: int) -> dict[str, int]:
    """Gives what heads must stay a multiple of, by site, if each layer is shared out over so many devices.

    Raises:
        ValueError: If the devices do not divide the heads or the neurons of a site.
    """
    for site in sites:
        groups = site.units // site.group
        if site.kind in ("neuron", "head") and groups % devices:
            raise ValueError(
                f"prune.tensor_parallel must divide the {groups} {site.kind}s of {site.name}, got {devices}"
            )
    return {site.name: devices * site.group for site in sites if site.kind == "head" and devices > 1}


def _last(model: PreTrainedModel, site: Site, arms: ArmTable) -> float:
    """Counts the parameters that go with the last unit of a site, beside those of its arms: keys and values that all
    query heads have in common."""
    counts = count_parameters(model)
    left = parameters_after(model, [(site, np.empty(0, dtype=np.int64))], counts)
    return float(counts["parameters"] - left["parameters"] - arms.parameters[arms.site == site.name].sum())


def _check_can_go(model: PreTrainedModel, kind: str, layout: str, least: Sequence[int]) -> None:
    """Raises ValueError where a floor of 0 is asked for and can be none.

    Args:
        model: Dense model.
        kind: Kind of arms that the floor is of.
        layout: Layout asked for.
        least: Units that each of its sites cannot do without.
    """
    if layout == "uniform":
        raise ValueError(
            f"prune.min_{kind}s must be at least 1 in layout uniform, got 0: use per_layer to let blocks go"
        )
    if all(least):
        raise ValueError(
            f"prune.min_{kind}s must be at least 1 for {model.config.model_type}, got 0: no block of its {kind}s "
            "can go whole, for others share its width, take over what it hands on, or ask its cache for their length"
        )


def _tie(site: Site, layout: str) -> str | None:
    """Names what a site keeps one size for: a field of a stock config, or else the experts of its layer."""
    if site.kind == LAYER:
        return None
    return f"{site.kind}s of {site.field}" if layout == "uniform" else site.tie


def _sizes(
    model: PreTrainedModel, sites: Sequence[Site], multiple: int, layout: str, target: TargetConfig
) -> set[int]:
    """Lists the sizes below the full one that tied sites may take.

    Raises:
        ValueError: If a stock config can say none, for `uniform`: what was asked, and why that cannot be.
    """
    of_experts = sites[0].kind == "neuron" and sites[0].expert is not None
    step = math.lcm(EXPERT_MULTIPLE if of_experts else 1, multiple)
    counts = set(range(step, sites[0].units, step))
    if layout == "per_layer":
        return counts
    said = sizes_of_field(model, sites)
    if not said:
        names = {site.name for site in sites}
        everything = architecture_of(model).sites(model)
        fewer = _asked(sites[0], target) or sites[0].group
        try:
            stock_config(
                model, [(site, np.arange(fewer if site.name in names else site.units)) for site in everything]
            )
        except ValueError as reason:
            raise ValueError(_refusal(sites[0], target, str(reason))) from reason
    return counts & said


def _asked(site: Site, target: TargetConfig) -> int | None:
    """Gives the units that a target leaves of a site, if they can be fewer; None where it does not count them."""
    fraction = target.counted()[site.kind]
    if not isinstance(fraction, float):
        return None
    groups = site.units // site.group
    return site.group * min(max(round(groups * (1 - fraction)), 1), groups - 1)


def _refusal(site: Site, target: TargetConfig, reason: str) -> str:
    """Says why `uniform` cannot be, from what was asked: the fraction, and the units of a layer that it leaves."""
    if not reason.startswith("a stock "):
        return reason  # no matter of numbers
    asked, kind = _asked(site, target), f"{site.kind}s"
    leaves = f", {kind} {target.counted()[site.kind]:g} leaves {asked} of {site.units}," if asked else ""
    return (
        f"{reason}; layout uniform keeps the same number of {kind} in every layer{leaves} and {site.units} is the "
        "only one that such a config can say"
    )


def width_multiple(config: PruningConfig, model_config: PretrainedConfig) -> int:
    """Gives the number that kept FFN widths are rounded to a multiple of; `auto` says 64 from D = 1024 on and 8 from
    D = 256 on, since products with other widths take longer, and else 1, where 8 would be much of a width. It is that
    for each of the devices that will share a layer."""
    hidden = getattr(model_config.get_text_config(), "hidden_size", 0)
    usual = next((multiple for least, multiple in MULTIPLES if hidden >= least), 1)
    return (usual if config.round_to == "auto" else config.round_to) * config.tensor_parallel
