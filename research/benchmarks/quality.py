"""What is left of a model: methods x runs x targets x compensations x seeds, one row a cell, resumable.

A run's model and test data are loaded once; each seed draws calibration data once, from which all methods' statistics,
all searches' pulls and all compensations come. Test data never change with the seed.
"""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any, cast

import numpy as np
from accelerate import Accelerator
from datasets import Dataset

from hf_mabprune.architectures import architecture_of
from hf_mabprune.arms import ArmTable, KeepIndices
from hf_mabprune.checkpoints.load import load_config
from hf_mabprune.compensation import CompensationFigures, compensate
from hf_mabprune.config import PruningConfig, TargetConfig
from hf_mabprune.criteria.statistics import CalibrationStatistics
from hf_mabprune.data.splits import load_splits
from hf_mabprune.effects.pulls.replay import ReplayPulls
from hf_mabprune.evaluation.comparison import Selection, Session
from hf_mabprune.evaluation.quality import Evaluation, evaluate, forward_of
from hf_mabprune.evaluation.report import installed_versions
from hf_mabprune.pipeline import load_model, make_accelerator, prepare, search
from hf_mabprune.runtime.processes import main_first, on_main
from hf_mabprune.selection import layouts
from hf_mabprune.surgery.cut import prune_copy
from hf_mabprune.tasks.base import Batch, Task
from hf_mabprune.tasks.readout import NO_TARGET, Scores
from hf_mabprune.tasks.sampling import batches_of, encode_sample
from research.benchmarks.controls import CONTROLS
from research.benchmarks.meter import Meter
from research.benchmarks.peers import Peer
from research.benchmarks.results import Results
from research.benchmarks.suite import KEY, Cell, Suite

RETAINED = (0.0, 1.5)  # bounds of the metric retained: no worse than knowing nothing; far above 1 there is no signal


def run(suite: Suite, cells: Sequence[Cell], out: str | Path, redo: bool = False) -> None:
    """Measures every cell that the file does not hold, and writes its row at once.

    Args:
        suite: That the cells are of.
        cells: From `suite.cells`.
        out: Parquet file of the rows.
        redo: Measure cells again that have a row.

    Raises:
        ValueError: For settings, a model or data that cannot work; what settings alone tell comes before any compute.
        OSError: If model or data cannot be read.
    """
    suite.check_cells(cells)
    results = Results(out)
    todo = list(cells) if redo else results.missing(suite, cells)
    for task in dict.fromkeys(cell.task for cell in todo):
        load_config(suite.settings(task).model.name)
    accelerator = make_accelerator()
    accelerator.print(f"{len(todo):,} of {len(cells):,} cells to measure; rows go to {results.path}")
    versions = json.dumps(installed_versions())
    done = 0
    for bench, group in _benches(suite, todo, accelerator):
        for cell, row in bench.rows(group):
            row |= {"settings": cell.fingerprint(suite), "plan": suite.plan(), "versions": versions}
            on_main(accelerator, lambda row=row: results.add(row))  # type: ignore[misc]
            done += 1
            said = f"{row['metric']} {row['value']:.4f} of {row['dense']:.4f}, KL {row['mean_kl']:.4f}"
            accelerator.print(f"[{done}/{len(todo)}] {' / '.join(map(str, cell.key))}: {said}", flush=True)


def _benches(suite: Suite, cells: Sequence[Cell], accelerator: Accelerator) -> Iterator[tuple["Bench", list[Cell]]]:
    for task, group in groupby(cells, key=lambda cell: cell.task):
        yield Bench.load(suite, task, accelerator), list(group)


@dataclass
class Bench:
    """One run's model and data, for all its cells.

    Attributes:
        session: Over arms of both kinds.
        calibration: That seeds draw from.
    """

    suite: Suite
    name: str
    session: Session
    calibration: Dataset

    @classmethod
    def load(cls, suite: Suite, name: str, accelerator: Accelerator) -> "Bench":
        """Raises ValueError or OSError for a model or data that cannot work."""
        settings = suite.settings(name)
        splits = main_first(accelerator, lambda: load_splits(settings.task))
        model, tokenizer = load_model(settings.model, settings.task, splits)
        session = prepare(settings, model.to(accelerator.device), tokenizer, splits, accelerator)
        return cls(suite, name, session, splits["calibration"])

    def rows(self, cells: Sequence[Cell]) -> Iterator[tuple[Cell, dict[str, Any]]]:
        """Measures cells of this run; one choice serves all its compensations, one search all its sizes."""
        for seed, drawn in groupby(cells, key=lambda cell: cell.seed):
            draw = self.draw(seed)
            shared: dict[str, list[Cell]] = {}
            for cell in drawn:
                shared.setdefault(cell.choice(self.suite), []).append(cell)
            for mine in shared.values():
                choices = draw.choose(mine)
                for cell in mine:
                    yield cell, self.row(cell, draw, choices[cell.target])

    def draw(self, seed: int) -> "Draw":
        """The seed's calibration data."""
        task, settings = self.session.task, self.suite.settings(self.name).task
        encoded = encode_sample(task, self.calibration, settings.calibration_examples, seed)
        batches = {**self.session.batches, "calibration": batches_of(task, encoded, settings.batch_size, equal=True)}
        return Draw(self.suite, self.name, replace(self.session, batches=batches), seed)

    def row(self, cell: Cell, draw: "Draw", choice: "Choice") -> dict[str, Any]:
        """Measures one cell."""
        session, dense, chance = self.session, self.dense, self.chance
        found, figures = draw.measure(choice.keep, cell.compensation)
        metric, better = session.task.main_metric, session.task.greater_is_better
        value, whole = found.metrics[metric], dense.metrics[metric]
        return {
            **dict(zip(KEY, cell.key, strict=True)),
            "model": self.suite.settings(self.name).model.name,
            "family": cell.family,
            "sparsity": cell.sparsity,
            "metric": metric,
            "greater_is_better": better,
            "value": value,
            "dense": whole,
            "chance": chance,
            "retained": retained(value, whole, chance, metric),
            "loss": found.loss,
            "dense_loss": dense.loss,
            "mean_kl": float(found.kl.mean()),
            "metrics": json.dumps(found.metrics),
            "parameters": choice.parameters + (figures.parameters if figures else 0),
            "dense_parameters": session.totals["parameters"],
            "kept": json.dumps({kind: choice.keep.sizes(kind) for kind in ("neuron", "head")}),
            "pulls": choice.pulls,
            "search_seconds": choice.seconds,
            "forward_tokens": choice.forward_tokens,
            "backward_tokens": choice.backward_tokens,
            "compensation_seconds": figures.seconds if figures else 0.0,
            "compensation_tokens": figures.forward_tokens if figures else 0,
            "sites_refitted": sum(not site.reason for site in figures.sites) if figures else 0,
            "sites_cut": len(figures.sites) if figures else 0,
        }

    @cached_property
    def dense(self) -> Evaluation:
        """On the test split."""
        session = self.session
        return evaluate(
            session.originals("test"), session.task, session.batches["test"], session.accelerator, intervals=False
        )

    @cached_property
    def chance(self) -> float:
        """Main metric of a model that knows nothing, as the suite says, else as `constant_answer` gives it."""
        given = self.suite.runs[self.name].chance
        if given is not None:
            return given
        targets = [
            self.session.originals("test")(number, batch).targets for number, batch in enumerate(self._on_device())
        ]
        counted = np.concatenate([target[target != NO_TARGET].cpu().numpy() for target in targets])
        return constant_answer(self.session.task, self.dense.scores, counted)

    def _on_device(self) -> Iterator[Batch]:
        device = self.session.accelerator.device
        for batch in self.session.batches["test"]:
            yield {name: tensor.to(device) for name, tensor in batch.items()}


@dataclass(frozen=True)
class Choice:
    """What a method keeps, and what it spent on that; several sizes of one search share all of it.

    Attributes:
        parameters: Of the smaller model, before a compensation adds biases.
    """

    keep: KeepIndices
    parameters: int
    seconds: float
    forward_tokens: int
    backward_tokens: int
    pulls: int = 0


@dataclass
class Draw:
    """One seed's calibration data, and all that comes from them."""

    suite: Suite
    name: str
    session: Session
    seed: int

    def choose(self, cells: Sequence[Cell]) -> dict[str, Choice]:
        """Target -> what is kept; the cells share the choice."""
        method = cells[0].method
        spec = self.suite.methods[method]
        if spec.policy is not None:
            return self._by_search(cells)
        choose = self._by_control if spec.control else self._by_peer if spec.peer else self._by_criterion
        return {cell.target: choose(method, cell.size) for cell in _one_a_size(cells)}

    def _by_criterion(self, method: str, size: TargetConfig) -> Choice:
        criterion, prune = self.suite.criterion(method), self.suite.settings(self.name, target=size).prune
        plan = layouts.make_plans(self.session.model, self.session.arms, self.session.totals, prune).search
        self.meter.start()
        kept, order = criterion.choose(cast(CalibrationStatistics, self.meter), plan)
        tokens = sum(batch["input_ids"].numel() for batch in self.session.batches["calibration"])
        forward, backward = (tokens * passes for passes in self.meter.passes())
        return self._choice(Selection(plan, kept, *self._rules(prune)), order, self.meter.stop(), forward, backward)

    def _by_control(self, method: str, size: TargetConfig) -> Choice:
        spec, session, prune = (
            self.suite.methods[method],
            self.session,
            self.suite.settings(self.name, target=size).prune,
        )
        plan = layouts.make_plans(session.model, session.arms, session.totals, prune).search
        pulls = ReplayPulls(
            session.model, session.arms, session.task, session.batches["calibration"], "kl", session.accelerator
        )
        mean = np.mean([batch["input_ids"].numel() for batch in pulls.batches])
        started, tokens = time.monotonic(), round(spec.sweeps * len(plan.arms) * float(mean))
        kept = CONTROLS[spec.control or ""](pulls, plan, tokens, self.seed)
        order = np.argsort(kept, kind="stable")  # what goes comes first
        selection = Selection(plan, kept, *self._rules(prune))
        return self._choice(selection, order, time.monotonic() - started, pulls.cost.forward_tokens, 0)

    def _by_peer(self, method: str, size: TargetConfig) -> Choice:
        peer, session = cast(Peer, self.suite.methods[method].made_peer()), self.session
        batches, started = session.batches["calibration"], time.monotonic()
        keep = peer.keep(session.model, session.task, batches, size.fractions())
        seconds = time.monotonic() - started
        tokens = sum(batch["input_ids"].numel() for batch in batches)
        parameters = prune_copy(session.model, keep, "per_layer").num_parameters()
        return Choice(keep, parameters, seconds, *(tokens * passes for passes in peer.passes()))

    def _by_search(self, cells: Sequence[Cell]) -> dict[str, Choice]:
        settings = cells[0].settings(self.suite).model_copy(update={"seed": self.seed})
        model, totals, prune = self.session.model, self.session.totals, settings.prune
        arms = architecture_of(model).arm_table(model, prune.kinds(), prune.block_size, self.session.tokens)
        session = replace(self.session, arms=arms, compensation=self.suite.compensation(cells[0].compensation))
        plans = {size.target.name(): layouts.make_plans(model, arms, totals, size).search for size in prune.sizes()}
        found, cost = search(settings, session, list(plans.values()), reference=self.session.reference)
        backward = getattr(cost, "backward_tokens", 0)
        spent = cost.seconds, cost.forward_tokens, backward, cost.pulls
        cuts = {cell.target: Selection.along(plans[cell.target], found.order, *self._rules(prune)) for cell in cells}
        return {target: self._choice(selection, found.order, *spent) for target, selection in cuts.items()}

    def _rules(self, prune: PruningConfig) -> tuple[int, int]:
        return layouts.width_multiple(prune, self.session.model.config.hidden_size), prune.min_neurons

    def _choice(self, selection: Selection, order: Any, *spent: Any) -> Choice:
        arms: ArmTable = selection.plan.arms
        kept = selection.rounded(order).kept
        parameters = self.session.totals["parameters"] - int(arms.parameters[~kept].sum())
        return Choice(arms.kept_units(kept), parameters, *spent)

    def measure(self, keep: KeepIndices, compensation: str) -> tuple[Evaluation, CompensationFigures | None]:
        """On the test split."""
        session, task = self.session, self.session.task
        method, small = self.suite.compensation(compensation), prune_copy(session.model, keep, self.suite.layout)
        figures = compensate(method, session.reference, small, keep) if method else None
        forward, original = forward_of(small, task), session.originals("test")
        return evaluate(
            forward, task, session.batches["test"], session.accelerator, original, intervals=False
        ), figures

    @cached_property
    def meter(self) -> "Meter":
        """For all criteria."""
        session = self.session
        return Meter(
            CalibrationStatistics(session.model, session.arms, session.task, session.batches["calibration"], self.seed)
        )


def retained(value: float, dense: float, chance: float, metric: str) -> float:
    """(value - chance) / (dense - chance), whichever way is better, within `RETAINED`; perplexities by their logs.

    0 where the dense model is at chance itself.
    """
    if metric == "perplexity":
        value, dense, chance = np.log([value, dense, chance])
    if dense == chance or not np.isfinite(value):
        return 0.0
    return float(np.clip((value - chance) / (dense - chance), *RETAINED))


def constant_answer(task: Task, scores: Scores, targets: Any) -> float:
    """Main metric of the best answer that is the same for every example: the majority class, the mean number, or, for
    a metric of losses, the distribution of the targets, whose loss is its entropy.

    Args:
        scores: Of the dense model on the split; what is right is read.
        targets: Every target of the split that counts, flat.
    """
    if task.main_metric == "perplexity":
        shares = np.unique(targets, return_counts=True)[1] / len(targets)
        scores = replace(scores, losses=np.full(len(scores.losses), -(shares * np.log(shares)).sum()))
    elif task.predicts_classes:
        classes, counts = np.unique(scores.reference, return_counts=True)
        scores = replace(scores, predicted=np.full_like(scores.reference, classes[np.argmax(counts)]))
    else:
        constant = np.broadcast_to(scores.reference.mean(0), scores.reference.shape)
        scores = replace(scores, predicted=constant.copy())
    return task.compute_metrics(scores)[task.main_metric]


def _one_a_size(cells: Sequence[Cell]) -> list[Cell]:
    return list({cell.target: cell for cell in cells}.values())
