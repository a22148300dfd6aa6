"""Which layouts a model, its arms and a target allow, and which of them `auto` takes."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from transformers import PretrainedConfig, PreTrainedModel

from hf_mabprune import modeling_pruned
from hf_mabprune.architectures import Architecture, architecture_of
from hf_mabprune.arms import ArmTable
from hf_mabprune.config import PruningConfig
from hf_mabprune.selection import Plan, make_plan


@dataclass(frozen=True)
class Plans:
    """One plan a layout that is within reach.

    Attributes:
        search: The plan that the search follows.
        uniform: The plan that `auto` tries on the search's order of removal; None where there is no choice.
        reason: Why the layout of `search` is what it is.
    """

    search: Plan
    uniform: Plan | None
    reason: str


def make_plans(
    model: PreTrainedModel, arms: ArmTable, totals: Mapping[str, int], config: PruningConfig
) -> Plans:
    """Checks the target against the layouts, before any compute.

    Raises:
        ValueError: If the target is out of reach in the layout asked for, or in every layout for `auto`.
    """
    architecture = architecture_of(model)
    floors = {"neuron": config.min_neurons, "head": config.min_heads * architecture.group_size(model.config)}

    def uniform() -> Plan:
        if isinstance(model.config, modeling_pruned.PerLayerConfig):
            raise ValueError("the model has per-layer sizes already: use layout per_layer")
        heads = uniform_head_counts(architecture, model.config)
        if "head" in config.kinds() and not heads:
            group = architecture.group_size(model.config)
            architecture.uniform_config(model.config, getattr(model.config, architecture.width_field), group)
        sizes = {"neuron": _multiples(architecture, model, config), "head": heads}
        return make_plan(arms, config.target, totals, "uniform", floors, sizes)

    if config.layout == "uniform":
        return Plans(uniform(), None, "asked for")
    per_layer = make_plan(arms, config.target, totals, "per_layer", floors)
    if config.layout == "per_layer":
        return Plans(per_layer, None, "asked for")
    try:
        return Plans(per_layer, uniform(), "")
    except ValueError as reason:
        return Plans(per_layer, None, f"auto: uniform is not possible: {reason}")


def uniform_head_counts(architecture: Architecture, config: PretrainedConfig) -> set[int]:
    """Query head counts below the full one that a stock config of this family can say.

    Raises:
        ValueError: Never; an empty set means that the family cannot prune heads uniformly.
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
    """What kept FFN widths are rounded to."""
    if config.round_to == "auto":
        return 64 if hidden_size >= 1024 else 1
    return config.round_to


def _multiples(architecture: Architecture, model: PreTrainedModel, config: PruningConfig) -> set[int]:
    width = int(getattr(model.config, architecture.width_field))
    multiple = width_multiple(config, model.config.hidden_size)
    return set(np.arange(multiple, width, multiple).tolist())
