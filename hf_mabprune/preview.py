"""What a run would be, before it is paid for: arms, layouts, feasible targets, memory and time. No pulls."""

import time
from dataclasses import dataclass

import numpy as np
import torch

from hf_mabprune.architectures import architecture_of
from hf_mabprune.compensation.dense_reference import HELD_OUT
from hf_mabprune.compensation.refit import KNOWN_BYTES
from hf_mabprune.config import PruneConfig, PruningConfig, SearchConfig
from hf_mabprune.effects.pulls.base import CACHE_BYTES
from hf_mabprune.effects.refit_costs import MEMORY, MOMENTS
from hf_mabprune.evaluation.comparison import Session
from hf_mabprune.pipeline import check_settings, load_session, make_accelerator
from hf_mabprune.search.loop import round_budgets
from hf_mabprune.selection import layouts

UNITS = {"neuron": "FFN neurons", "head": "query heads"}
MEASURED = 3  # forward passes that the time is estimated from
WIDTHS = 16  # hidden states of a layer that a pass with gradients keeps
REFIT_PASSES = 10  # over the calibration data, backward passes counted twice


@dataclass(frozen=True)
class RunPlan:
    """What a run would be.

    Attributes:
        lines: In words, for a terminal.
        pulls: Of the whole search.
        seconds: Estimated, of search and report on one process; from a few forward passes, so only a rough guide.
        memory_bytes: Estimated peak, beside what the libraries take: weights and their smaller copy, caches, second
            moments, and the activations of a pass with gradients.
        reach: Layout -> quantity -> largest fraction that can be removed; a layout that is not possible is missing.
    """

    lines: list[str]
    pulls: int
    seconds: float
    memory_bytes: int
    reach: dict[str, dict[str, float]]

    def __str__(self) -> str:
        return "\n".join(self.lines)


def plan_run(settings: PruneConfig) -> RunPlan:
    """Describes a run without pulling an arm; loads model and data, and makes a few forward passes.

    Args:
        settings: Of the run.

    Returns:
        What it would be; `print` shows it in words.

    Raises:
        ValueError, OSError: For what would stop the run itself, targets out of reach included.
    """
    check_settings(settings.model_copy(update={"output": settings.output.model_copy(update={"overwrite": True})}))
    session, _ = load_session(settings, make_accelerator())
    model = session.model
    reach, refused = _reach(session, settings.prune)
    plans = [layouts.make_plans(model, session.arms, session.totals, size) for size in settings.prune.sizes()]
    config = settings.search
    rounds, estimated = config.number_of_rounds, bool(config.interactions or config.refit)
    budgets = round_budgets(round(config.pulls_per_arm * len(session.arms)), rounds, plans[-1].search, estimated)
    pulls = sum(budgets)
    seconds, search = _time(session, settings, pulls)
    memory, cache = _memory(session, config)
    blind = 0 if estimated else sum(budget == 0 for budget in budgets)
    notes = [f"note: {blind} rounds get no pulls: raise pulls_per_arm, or lower rounds"] if blind else []
    if settings.stages > 1:
        notes.append(
            f"note: that is the first of {settings.stages} searches, the others are of smaller models; training comes "
            "on top of it"
        )
    lines = [
        *_describe_arms(session),
        *_describe_layouts(session, reach, refused),
        *(_describe_target(size, found) for size, found in zip(settings.prune.sizes(), plans, strict=True)),
        f"search: {pulls:,} pulls in {rounds} round{'s' if rounds > 1 else ''}, about {_duration(search)} on one "
        f"process; with evaluation and {settings.output.random_seeds} random draws about {_duration(seconds)}",
        f"memory: about {memory / 2**20:,.0f} MiB beside the libraries ({model.get_memory_footprint() / 2**20:,.0f} "
        f"weights, at most {cache / 2**20:,.0f} caches)",
        *notes,
    ]
    return RunPlan(lines, pulls, seconds, memory, reach)


def _describe_arms(session: Session) -> list[str]:
    arms, config = session.arms, session.model.config
    lines = [
        f"{config.model_type} | {config.num_hidden_layers} layers | {session.totals['parameters']:,} parameters | "
        f"{session.totals['macs'] / 1e6:,.1f}M MACs for {session.tokens} tokens | {session.accelerator.device}"
    ]
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
    loads = {
        "uniform": "loads with plain AutoModel",
        "per_layer": "loads after import hf_mabprune, or with trust_remote_code=True",
    }
    lines = [
        f"layout {layout}: {loads[layout]}; can remove up to "
        + ", ".join(f"{name} {fraction:.3g}" for name, fraction in found.items())
        for layout, found in reach.items()
    ]
    return lines + [f"layout {layout}: not possible: {reason}" for layout, reason in refused.items()]


def _describe_target(size: PruningConfig, plans: layouts.Plans) -> str:
    """What a target removes, in the plan's own terms."""
    asked = ", ".join(f"{name} {fraction:g}" for name, fraction in size.target.fractions().items())
    plan = plans.search
    kept, _ = plan.choose(np.zeros(len(plan.arms)), np.ones(len(plan.arms), dtype=bool))
    removed = ", ".join(
        f"{budget.cost[budget.candidates[~kept[budget.candidates]]].sum():,.0f} of {budget.total:,.0f} {budget.name}"
        for budget in plan.budgets
    )
    choice = "layout auto: validation decides between both" if plans.uniform else f"layout {plan.layout}"
    return f"target {asked}: within reach, removes {removed}; {choice}"


def _reach(session: Session, prune: PruningConfig) -> tuple[dict[str, dict[str, float]], dict[str, str]]:
    """Largest feasible fractions of each layout, and why a layout is not possible."""
    reach: dict[str, dict[str, float]] = {}
    refused = {}
    for layout in ("uniform", "per_layer"):
        asked = prune.model_copy(update={"layout": layout})
        try:
            reach[layout] = layouts.largest_targets(session.model, session.arms, session.totals, asked)
        except ValueError as reason:
            refused[layout] = str(reason)
    return reach, refused


@torch.inference_mode()
def _time(session: Session, settings: PruneConfig, pulls: int) -> tuple[float, float]:
    """Seconds of the whole run and of the search alone, from a few forward passes."""
    batches = session.batches["calibration"][:MEASURED]
    inputs = [{name: tensor.to(session.model.device) for name, tensor in batch.items()} for batch in batches]
    session.task.readout(session.model, inputs[0])  # warms up
    start = time.perf_counter()
    for batch in inputs:
        session.task.readout(session.model, batch)
    if session.model.device.type == "cuda":
        torch.cuda.synchronize()
    seconds = (time.perf_counter() - start) / len(inputs)
    layers = session.arms.layer.max() + 1
    share = float(np.mean((layers - session.arms.layer) / layers))  # of a forward pass that a pull runs
    drawn = len(session.batches["calibration"])
    passes = settings.search.number_of_rounds * min(drawn, 4)
    if settings.search.refit:
        passes += REFIT_PASSES * drawn + settings.search.moves * drawn // HELD_OUT
    search = seconds * (pulls * share + passes)
    sizes = len(settings.prune.sizes())
    tests = len(session.batches["test"]) * (1 + sizes * (1 + settings.output.random_seeds))
    return search + seconds * tests, search


def _memory(session: Session, search: SearchConfig) -> tuple[int, int]:
    """Bytes at the peak beside the libraries' own, and bytes of the caches in it."""
    model, refit, size = session.model, bool(search.refit), session.model.dtype.itemsize
    lengths = [batch["input_ids"].numel() for batch in session.batches["calibration"]]
    tokens = max(lengths)
    hidden, layers = model.config.hidden_size, model.config.num_hidden_layers
    sites = [site for site in architecture_of(model).sites(model) if site.kind in session.arms.kind]
    columns = [site.units * site.unit_size for site in sites]
    classes = model.config.vocab_size if model.get_output_embeddings() else 0
    outputs = 8 * size * tokens * classes
    gradients = size * tokens * layers * (WIDTHS * hidden + 3 * max(columns)) if refit or search.interactions else 0
    cache = int(min(CACHE_BYTES, 2 * layers * size * hidden * sum(lengths)))
    squares = [8 * width**2 for width in columns]  # second moments of each site, float64
    reference = 2 * sum(squares) if session.compensation else 0  # of the data for refits, and of those held out
    refit_costs = stand_ins = known = 0
    if refit:
        refit_costs = MOMENTS * max(min(MEMORY // MOMENTS, sum(squares)), max(squares))
        stand_ins = size * sum(squares) // 8
        known = min(KNOWN_BYTES, 8 * hidden * sum(columns) * search.moves)
    peak = max(refit_costs + gradients, cache + gradients, cache + reference + known)
    return int(2 * model.get_memory_footprint() + stand_ins + outputs + peak), cache


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
