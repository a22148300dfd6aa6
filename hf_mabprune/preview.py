"""What a run would be, before it is paid for: arms, layouts, feasible targets, memory and time. No pulls."""

import time
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from hf_mabprune.architectures import architecture_of
from hf_mabprune.checkpoints.offload import bytes_at_hand, offload_of
from hf_mabprune.checks import check_settings
from hf_mabprune.compensation import dense_reference, refit
from hf_mabprune.config import PruneConfig, PruningConfig
from hf_mabprune.criteria import CRITERIA
from hf_mabprune.effects import dense_outputs, gradients
from hf_mabprune.effects.memory import Sizes
from hf_mabprune.effects.pulls import replay
from hf_mabprune.effects.pulls.cost import Cost
from hf_mabprune.progress import over, stage
from hf_mabprune.recovery.batching import batch_order
from hf_mabprune.runtime.accelerator import make_accelerator
from hf_mabprune.search.loop import round_budgets
from hf_mabprune.search.rules import Extent, Rule, RuleMemory
from hf_mabprune.search.run import criterion_name, make_rule, pulls_per_arm
from hf_mabprune.selection import layouts
from hf_mabprune.session import Session, open_session
from hf_mabprune.tasks.batch import Batch
from hf_mabprune.tasks.readout import Readout

UNITS = {"neuron": "FFN neurons", "head": "query heads", "expert": "experts"}
ARTIFACTS = 6.0  # seconds for figures, latencies, saving and reading back
DATA = 2**27  # bytes of encoded data, figures and scratch memory of the libraries, roughly
BATCHES_A_PULL = 3  # that pulls are made on, for each pull of an arm: the arms in doubt are pulled more often
MEASURED = 3  # forward passes that the time is estimated from
A_STEP = 4  # passes of a training step over an example: the dense model's, the pruned one's, and two backward
LOOKS = 4  # batches that a round runs whole, in its context and for its last look


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
    rule = None if settings.search.criterion is not None else make_rule(settings)
    budgets = _budgets(session, plans[-1], rule)
    trial = _rehearsal(session)
    costs = _costs(session, rule, sum(budgets), trial, len(plans))
    memory, cache = _memory(session, rule, trial.readout)
    after = trial.seconds * _passes_after(session, len(plans), trial) + ARTIFACTS * len(plans)
    seconds = opened + costs["search"].seconds + after
    lines = [
        *_describe_arms(session),
        *_describe_layouts(session, reach, refused),
        *(_describe_target(size, found) for size, found in zip(settings.prune.sizes(), plans, strict=True)),
        _describe_search(session, budgets, costs["search"], seconds),
        *_describe_criteria(session, costs),
        f"memory: about {memory / 2**20:,.0f} MiB beside the libraries "
        f"({bytes_at_hand(session.dense) / 2**20:,.0f} weights, at most {cache / 2**20:,.0f} caches)",
        *_notes(settings, budgets, rule),
    ]
    return RunPlan(lines, sum(budgets), costs, seconds, memory, reach)


def _describe_arms(session: Session) -> list[str]:
    arms, model = session.arms, session.dense
    layers = len(architecture_of(model).layers(model))
    lines = [
        f"{model.config.model_type} | {layers} layers | {session.totals['parameters']:,} parameters | "
        f"{session.totals['macs'] / 1e6:,.1f}M MACs for {_size(session.example)} | {session.accelerator.device}"
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


@stage("layout")
def _plans(session: Session) -> list[layouts.Plans]:
    """Plans of all sizes, least removed first."""
    sizes = over(session.settings.prune.sizes(), "plans", "sizes")
    return [layouts.make_plans(session.dense, session.arms, session.totals, size) for size in sizes]


@stage("layout")
def _reach(session: Session, prune: PruningConfig) -> tuple[dict[str, dict[str, float]], dict[str, str]]:
    """Largest feasible fractions of each layout, and why a layout is not possible."""
    reach: dict[str, dict[str, float]] = {}
    refused = {}
    for layout in over(("uniform", "per_layer"), "largest targets", "layouts"):
        asked = prune.model_copy(update={"layout": layout})
        try:
            reach[layout] = layouts.largest_targets(session.dense, session.arms, session.totals, asked)
        except ValueError as reason:
            refused[layout] = str(reason)
    return reach, refused


def _describe_search(session: Session, budgets: list[int], cost: Cost, seconds: float) -> str:
    """What chooses, and what it and the whole run would take."""
    settings = session.settings
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


def _notes(settings: PruneConfig, budgets: list[int], rule: Rule | None) -> list[str]:
    notes = []
    blind = 0 if rule is None or rule.estimates else sum(budget == 0 for budget in budgets)
    if blind:
        notes.append(f"note: {blind} rounds get no pulls: raise pulls_per_arm, or lower rounds")
    if settings.stages > 1:
        notes.append(
            f"note: that is the first of {settings.stages} searches, the others are of smaller models; training comes "
            "on top of it"
        )
    return notes


def _budgets(session: Session, plans: layouts.Plans, rule: Rule | None) -> list[int]:
    """Pulls of each round; none where a criterion chooses."""
    if rule is None:
        return []
    config = session.settings.search
    total = round(pulls_per_arm(session, rule) * len(session.arms))
    return round_budgets(total, config.rounds or rule.default_rounds, plans.search, rule.estimates)


class Trial(NamedTuple):
    """What a few forward passes show.

    Attributes:
        seconds: Of a pass over one calibration batch, and of comparing what it gives.
        passing: Part of that which is the pass itself.
        testing: Passes that one over the test split takes as long as.
        moments: Passes that the second moments of all sites on a batch take as long as.
        readout: What the dense model says on the first batch.
    """

    seconds: float
    passing: float
    testing: float
    moments: float
    readout: Readout


@stage("trial passes")
@torch.inference_mode()
def _rehearsal(session: Session) -> Trial:
    """Passes over a few calibration batches, and over one of the test split."""
    calibration, test = session.batches["calibration"][:MEASURED], session.batches["test"]
    readout, *_ = _timed(session, calibration[0])  # warms up
    found = [_timed(session, batch) for batch in over(calibration, "trial passes")]
    seconds = float(np.mean([whole for _, _, whole in found]))
    passing = float(np.mean([alone for _, alone, _ in found])) / seconds
    of_test = _timed(session, test[0])[2] * sum(batch.tokens for batch in test) / test[0].tokens
    return Trial(seconds, passing, of_test / seconds, _moments(session, passing), readout)


def _timed(session: Session, batch: Batch) -> tuple[Readout, float, float]:
    """What the dense model says on a batch, and seconds until it has said that, and until it is compared as well."""
    device = session.dense.device
    batch, started = batch.to(device), time.perf_counter()
    readout = session.task.readout(session.dense, batch)
    _wait(device)
    said = time.perf_counter()
    readout.divergence(readout)
    _wait(device)
    return readout, said - started, time.perf_counter() - started


def _wait(device: torch.device) -> None:
    """Waits for what a GPU was given to do."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def _costs(session: Session, rule: Rule | None, pulls: int, trial: Trial, sizes: int) -> dict[str, Cost]:
    """Estimated costs of the search, and of criteria alone; a backward pass, in which no weights get gradients, takes
    as long as a forward pass."""
    batches = len(session.batches["calibration"])
    tokens = sum(batch.tokens for batch in session.batches["calibration"])

    def of_criterion(name: str) -> Cost:
        forward, backward = CRITERIA.get(name).passes_on(trial.readout)
        return Cost(0, forward * tokens, backward * tokens, trial.seconds * batches * (forward + backward))

    kinds = session.settings.prune.kinds()
    costs = {name: of_criterion(name) for name in CRITERIA.names() if CRITERIA.get(name).ranks(kinds)}
    alone = session.settings.search.criterion
    if alone is not None:
        return {"search": of_criterion(criterion_name(alone)), **costs}
    assert rule is not None  # which is missing only where a criterion chooses
    architecture = architecture_of(session.dense)
    layers = len(architecture.layers(session.dense))
    depth = {site.name: site.depth for site in architecture.sites(session.dense)}
    share = float(np.mean([(layers - depth[name]) / layers for name in session.arms.site]))  # of a pass, a pull runs
    rounds = session.settings.search.rounds or rule.default_rounds
    extent = Extent(batches, _refit_batches(session)[1], trial.readout, trial.moments, pulls, sizes)
    passes = pulls * share + rounds * min(batches, LOOKS) * (pulls > 0) + rule.passes(extent)
    return {"search": Cost(pulls, passes * tokens / batches, 0.0, trial.seconds * passes), **costs}


def _moments(session: Session, passing: float) -> float:
    """Passes over a batch that take as long as the second moments of all sites on it, by what both multiply."""
    sizes = Sizes.of(session.dense, session.arms, session.task, session.batches["calibration"], session.reserve)
    layers = session.totals["ffn_parameters"] + session.totals["attention_parameters"]
    return passing * sum(columns**2 for columns in sizes.columns) / layers


def _refit_batches(session: Session) -> tuple[float, float]:
    """Batches that refits are made from and judged by, in calibration batches of as many tokens."""
    if not session.compensation:
        return 0.0, 0.0
    typical = np.mean([batch.tokens for batch in session.batches["calibration"]])
    fitted, held_out = (
        sum(batch.tokens for batch in batches) for batches in (session.reference.batches, session.reference.held_out)
    )
    return float(fitted / typical), float(held_out / typical)


def _passes_after(session: Session, sizes: int, trial: Trial) -> float:
    """Counts passes over one batch, or as much work, after a search: of evaluation, refits and recovery.

    Each size, each of its random draws and each criterion beside it is cut, refitted and measured on the test split.
    """
    settings, architecture = session.settings, architecture_of(session.dense)
    typical = float(np.mean([batch.tokens for batch in session.batches["calibration"]]))
    models = sizes * (1 + settings.output.random_seeds + len(settings.output.criteria))
    passes = trial.testing * (1 + models)
    if session.compensation:
        sites = [site for site in architecture.sites(session.dense) if site.kind in session.arms.kinds()]
        fitted, held_out = _refit_batches(session)
        layers = len(architecture.layers(session.dense))
        passes += (fitted + held_out) * (len(session.arms.kinds()) + trial.moments)
        passes += models * refit.passes(session.compensation, len(sites), layers, fitted, held_out)
    if settings.recovery and session.training is not None:
        lengths = session.task.lengths(session.training)
        order = batch_order(lengths, settings.recovery, settings.seed)
        passes += sizes * A_STEP * order.size * float(np.mean(lengths)) / typical
    return passes


def _memory(session: Session, rule: Rule | None, readout: Readout) -> tuple[int, int]:
    """Bytes at the peak beside the libraries' own, and bytes of the caches in it.

    Args:
        readout: What the model says on the first batch.
    """
    batches = session.batches["calibration"]
    sizes = Sizes.of(session.dense, session.arms, session.task, batches, session.reserve)
    forming, outputs = dense_outputs.memory(sizes, readout, batches[0].tokens)
    pulls = 0.0 if rule is None else pulls_per_arm(session, rule)
    recordings = round(min(1.0, BATCHES_A_PULL * pulls / len(batches)) * replay.memory(sizes))
    moments = dense_reference.memory(sizes) if session.compensation else 0
    needed = RuleMemory(preparing=gradients.memory(sizes)) if rule is None else rule.memory(sizes)
    most = session.reserve.limit - session.reserve.room  # that is kept
    above = _states(session, sizes)
    settled = min(most, needed.kept + outputs + moments + needed.refits) + max(
        needed.settling, sizes.together(1), above
    )
    pulled = min(most, needed.kept + outputs + recordings) + needed.pulling
    kept = min(most, needed.kept + outputs + max(recordings, moments + needed.refits))
    return DATA + sizes.weights + forming + max(needed.preparing, pulled, sizes.weights + settled), kept


def _states(session: Session, sizes: Sizes) -> int:
    """Bytes of what a layer gives on all data of a refit that goes layer by layer: bottom-up, in both models."""
    if not session.compensation:
        return 0
    models = 2 if session.compensation.bottom_up else int(offload_of(session.dense) is not None)
    batches = [*session.reference.batches, *session.reference.held_out]
    return models * sizes.item * sizes.hidden * sum(batch.tokens for batch in batches)


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
