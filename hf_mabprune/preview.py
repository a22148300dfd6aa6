"""What a run would be, before it is paid for: arms, layouts, feasible targets, memory and time. No pulls."""

import time
from dataclasses import dataclass

import numpy as np

from hf_mabprune.architectures import architecture_of
from hf_mabprune.arms import LAYER
from hf_mabprune.checkpoints.offload import bytes_at_hand
from hf_mabprune.checkpoints.ways import needed
from hf_mabprune.checks import check_settings
from hf_mabprune.config import PruneConfig, PruningConfig, in_words, name_of
from hf_mabprune.effects.pulls.cost import Cost
from hf_mabprune.forecast import Forecast, forecast
from hf_mabprune.progress import over, stage
from hf_mabprune.runtime.accelerator import make_accelerator
from hf_mabprune.search.run import criterion_name
from hf_mabprune.selection.layouts import Plans
from hf_mabprune.session import Session, open_session
from hf_mabprune.surgery.empty_layers import can_go_empty
from hf_mabprune.tasks.batch import Batch

UNITS = {"neuron": "FFN neurons", "head": "query heads", "expert": "experts", "layer": "layers"}


@dataclass(frozen=True)
class RunPlan:
    """What a run would be.

    Attributes:
        lines: In words, for a terminal.
        pulls: Of the whole search.
        costs: Estimated, of the search as it is set, under `search`, and of other ways to choose, by criterion.
        seconds: Estimated, of search and report on one process; from a few forward passes, so only a rough guide.
        memory_bytes: Estimated peak, beside what the libraries take.
        reach: Layout -> quantity -> largest fraction that can be removed; a layout that is not possible is missing.
    """

    lines: list[str]
    pulls: int
    costs: dict[str, Cost]
    seconds: float
    memory_bytes: int
    reach: dict[str, dict[str, float]]

    def __str__(self) -> str:
        return "\n".join(self.lines)


def plan_run(settings: PruneConfig) -> RunPlan:
    """Describes a run without pulling an arm; loads model and data, and makes a few forward passes.

    Args:
        settings: Run settings.

    Returns:
        What it would be; `print` shows it in words.

    Raises:
        ValueError, OSError: For what would stop the run itself, targets out of reach included.
    """
    replacing = settings.output.model_copy(update={"overwrite": True})  # an earlier output may be there
    check_settings(settings.model_copy(update={"output": replacing}))
    started = time.perf_counter()
    session = open_session(settings, make_accelerator())
    opened = time.perf_counter() - started
    reach, refused = _reach(session, settings.prune)
    plans = _plans(session)
    taken = forecast(session, [plan.search for plan in plans])
    seconds = opened + taken.seconds
    lines = [
        *_describe_arms(session),
        *_describe_layouts(session, reach, refused),
        *(_describe_target(size, found) for size, found in zip(settings.prune.sizes(), plans, strict=True)),
        _describe_search(session, taken, seconds),
        *_describe_criteria(session, taken.costs),
        f"memory: about {taken.memory_bytes / 2**20:,.0f} MiB beside the libraries "
        f"({bytes_at_hand(session.dense) / 2**20:,.0f} weights, at most {taken.cache_bytes / 2**20:,.0f} caches)",
        *_notes(settings, taken.blind),
    ]
    return RunPlan(lines, sum(taken.budgets), taken.costs, seconds, taken.memory_bytes, reach)


def _describe_arms(session: Session) -> list[str]:
    arms, model = session.arms, session.dense
    layers = len(architecture_of(model).layers(model))
    lines = [
        f"{model.config.model_type} | {layers} layers | {session.totals['parameters']:,} parameters | "
        f"{session.totals['macs'] / 1e6:,.1f}M MACs for {_size(session.example)} | {session.accelerator.device}"
    ]
    if vocabulary := session.vocabulary:
        lines.append("vocabulary: {1:,} of {0:,} tokens stay, those {2}".format(*vocabulary.tokens, vocabulary.corpus))
    if LAYER not in arms.kinds() and not (session.settings.prune.min_heads or session.settings.prune.min_neurons):
        lines.append(f"layers that go where both of their blocks do: {len(can_go_empty(model))} of {layers}")
    for kind, name in UNITS.items():
        rows = arms.of_kind(kind)
        if len(rows):
            share = arms.parameters[rows].sum() / session.totals["parameters"]
            lines.append(
                f"arms: {len(rows):,} of kind {kind}, up to {arms.units[rows].max()} {name} each, "
                f"{arms.parameters[rows].max():,} parameters; together {share:.0%} of the model"
            )
    return lines


def _describe_layouts(session: Session, reach: dict[str, dict[str, float]], refused: dict[str, str]) -> list[str]:
    model_type = str(session.dense.config.model_type)
    lines = [
        f"layout {layout}: loads {needed(layout, model_type) or 'with plain AutoModel'}; can remove up to "
        + ", ".join(f"{name} {fraction:.3g}" for name, fraction in found.items())
        for layout, found in reach.items()
    ]
    return lines + [f"layout {layout}: not possible: {reason}" for layout, reason in refused.items()]


def _describe_target(size: PruningConfig, plans: Plans) -> str:
    """What a target removes, in the plan's own terms."""
    asked = ", ".join(name_of({name: amount}).replace("-", " ") for name, amount in size.target.amounts().items())
    plan = plans.search
    kept, _ = plan.choose(np.zeros(len(plan.arms)), np.ones(len(plan.arms), dtype=bool))
    removed = ", ".join(
        f"{in_words(plan.gone(budget, kept), budget.unit)} of {in_words(budget.total, budget.unit)} {budget.name}"
        for budget in plan.budgets
    )
    choice = "layout auto: validation decides between both" if plans.uniform else f"layout {plan.layout}"
    return f"target {asked}: within reach, removes {removed}; {choice}"


@stage("layout")
def _plans(session: Session) -> list[Plans]:
    """Plans of all sizes, least removed first."""
    sizes = over(session.settings.prune.sizes(), "plans", "sizes")
    return [session.plans(size) for size in sizes]


@stage("layout")
def _reach(session: Session, prune: PruningConfig) -> tuple[dict[str, dict[str, float]], dict[str, str]]:
    """Largest feasible fractions of each layout, and why a layout is not possible."""
    reach: dict[str, dict[str, float]] = {}
    refused = {}
    for layout in over(("uniform", "per_layer"), "largest targets", "layouts"):
        asked = prune.model_copy(update={"layout": layout})
        try:
            reach[layout] = session.largest_targets(asked)
        except ValueError as reason:
            refused[layout] = str(reason)
    return reach, refused


def _describe_search(session: Session, taken: Forecast, seconds: float) -> str:
    """What chooses, and what it and the whole run would take."""
    settings, budgets, cost = session.settings, taken.budgets, taken.costs["search"]
    rest = (
        f"{_passes(cost, session.example)}, about {_duration(cost.seconds)} on one process; with evaluation and "
        f"{settings.output.random_seeds} random draws about {_duration(seconds)}"
    )
    if settings.search.criterion is not None:
        return f"search: none, criterion {criterion_name(settings.search.criterion)} chooses, {rest}"
    return f"search: {sum(budgets):,} pulls in {len(budgets)} round{'s' if len(budgets) > 1 else ''}, {rest}"


def _describe_criteria(session: Session, costs: dict[str, Cost]) -> list[str]:
    """What cheaper ways to choose would cost, the cheapest first; those that cost the same stand together."""
    names: dict[Cost, list[str]] = {}
    for name, cost in costs.items():
        if name != "search":
            names.setdefault(cost, []).append(name)
    prices = [
        f"{', '.join(alike)} {_passes(cost, session.example)}, about {_duration(cost.seconds)}"
        for cost, alike in sorted(names.items(), key=lambda item: item[0].seconds)
    ]
    return [f"without pulls (--search.criterion NAME): {'; '.join(prices)}"]


def _notes(settings: PruneConfig, blind: int) -> list[str]:
    notes = []
    if blind:
        notes.append(f"note: {blind} rounds get no pulls: raise pulls_per_arm, or lower rounds")
    if settings.stages > 1:
        notes.append(
            f"note: that is the first of {settings.stages} searches, the others are of smaller models; training comes "
            "on top of it"
        )
    return notes


def _size(example: Batch) -> str:
    """Length of an example in words, where it has one."""
    return f"{example.length} tokens" if example.length else "one example"


def _passes(cost: Cost, example: Batch) -> str:
    """Forward and backward tokens in words; examples, where there are no tokens."""
    unit = "tokens" if example.length else "examples"
    return f"{(cost.forward_tokens + cost.backward_tokens) / 1e3:,.0f}k {unit}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
