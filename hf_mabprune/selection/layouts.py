"""Finds out which checkpoint layouts a model, its arms and a target allow, and what `auto` may choose from."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from transformers import PretrainedConfig, PreTrainedModel

from hf_mabprune.architectures import Architecture, architecture_of
from hf_mabprune.arms import ArmTable
from hf_mabprune.checkpoints import modeling_pruned
from hf_mabprune.config import PruningConfig
from hf_mabprune.selection.plan import Plan
from hf_mabprune.selection.target import make_plan, reach


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
    model: PreTrainedModel, arms: ArmTable, totals: Mapping[str, int], config: PruningConfig
) -> Plans:
    """Checks the target against the layouts, before any compute.

    Args:
        model: Dense model.
        arms: All arms of the model.
        totals: `parameters` and `macs` of the model.
        config: Settings of what is pruned: target, layout, floors and rounding.

    Raises:
        ValueError: If the target is out of reach in the layout asked for, or in every layout for `auto`.
    """
    def plan(layout: Literal["uniform", "per_layer"]) -> Plan:
        return make_plan(arms, config.target, totals, layout, *_limits(model, arms, config, layout))

    if config.layout == "uniform":
        return Plans(plan("uniform"), None, "asked for")
    per_layer = plan("per_layer")
    if config.layout == "per_layer":
        return Plans(per_layer, None, "asked for")
    try:
        return Plans(per_layer, plan("uniform"), "")
    except ValueError as reason:
        return Plans(per_layer, None, f"auto: uniform is not possible: {reason}")


def largest_targets(
    model: PreTrainedModel, arms: ArmTable, totals: Mapping[str, int], config: PruningConfig
) -> dict[str, float]:
    """Finds the largest fraction of each quantity that the layout can remove; arguments as those of `make_plans`.

    Returns:
        Quantity -> fraction.

    Raises:
        ValueError: If the layout is not possible at all.
    """
    layout: Literal["uniform", "per_layer"] = "uniform" if config.layout == "uniform" else "per_layer"
    return reach(arms, totals, layout, *_limits(model, arms, config, layout))


def _limits(
    model: PreTrainedModel, arms: ArmTable, config: PruningConfig, layout: Literal["uniform", "per_layer"]
) -> tuple[dict[str, int], dict[str, set[int]]]:
    """Works out floors in units and the sizes that `uniform` may take: the last arguments of `make_plan`.

    Raises:
        ValueError: If the family's stock config cannot say fewer heads, for `uniform`.
    """
    architecture = architecture_of(model)
    floors = {"neuron": config.min_neurons, "head": config.min_heads * architecture.group_size(model.config)}
    widths = [int(arms.stop[rows].max()) for kind, _, rows in arms.groups() if kind == "neuron"]
    if widths and width_multiple(config, model.config.hidden_size) >= min(widths):
        raise ValueError(f"round_to must be below {min(widths)}, the neurons of a layer, got {config.round_to}")
    if layout == "per_layer":
        return floors, {}
    if isinstance(model.config, modeling_pruned.PerLayerConfig):
        raise ValueError("the model has per-layer sizes already: use layout per_layer")
    heads = uniform_head_counts(architecture, model.config)
    if (arms.kind == "head").any() and not heads:
        group = architecture.group_size(model.config)
        architecture.uniform_config(model.config, getattr(model.config, architecture.width_field), group)
    return floors, {"neuron": _multiples(architecture, model, config), "head": heads}


def uniform_head_counts(architecture: Architecture, config: PretrainedConfig) -> set[int]:
    """Finds the query head counts below the full one that a stock config of this family can say.

    Returns:
        Counts of query heads; none where the family cannot prune heads uniformly.
    """
    heads, group = int(getattr(config, architecture.heads_field)), architecture.group_size(config)
    width = int(getattr(config, architecture.width_field))
    counts = set()
    for count in range(group, heads, group):
        try:
            architecture.uniform_config(config, width, count)
        except ValueError:
            continue
        counts.add(count)
    return counts


def width_multiple(config: PruningConfig, hidden_size: int) -> int:
    """Gives the number that kept FFN widths are rounded to a multiple of; `auto` says 64 from D = 1024 on, else 1."""
    if config.round_to == "auto":
        return 64 if hidden_size >= 1024 else 1
    return config.round_to


def _multiples(architecture: Architecture, model: PreTrainedModel, config: PruningConfig) -> set[int]:
    """Lists the FFN widths below the full one that are multiples."""
    width = int(getattr(model.config, architecture.width_field))
    multiple = width_multiple(config, model.config.hidden_size)
    return set(np.arange(multiple, width, multiple).tolist())
