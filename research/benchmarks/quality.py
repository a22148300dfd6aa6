"""What is left of a model: methods x runs x targets x compensations x allocations x seeds, one row a cell, resumable.

A run's model and test data are loaded once; each seed draws calibration data once, from which all methods' statistics,
all searches' pulls and all compensations come. Test data never change with the seed, and neither do those that decide
between a method's allocations: the validation split, which nothing else here reads (see `allocations.taken`).
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from datasets import Dataset

from hf_mabprune.checkpoints.load import load_config
from hf_mabprune.compensation import CompensationFigures
from hf_mabprune.data.splits import load_splits
from hf_mabprune.effects.dense_outputs import DenseOutputs
from hf_mabprune.evaluation.comparison import Comparison
from hf_mabprune.evaluation.quality import Evaluation, forward_of
from hf_mabprune.evaluation.report import installed_versions
from hf_mabprune.progress import Work, over, stage
from hf_mabprune.runtime.accelerator import make_accelerator
from hf_mabprune.runtime.processes import main_first, on_main
from hf_mabprune.session import Session, affordable, calibration_batches, load_model, make_session
from hf_mabprune.surgery.cut import cut
from hf_mabprune.tasks.base import Task
from hf_mabprune.tasks.batch import Batch
from hf_mabprune.tasks.readout import NO_TARGET, Readout
from hf_mabprune.tasks.scores import Scores
from research.benchmarks.draw import Choice, Draw
from research.benchmarks.results import Results
from research.benchmarks.suite import KEY, Cell, Suite

MEASURED_ON = ("test", "validation")  # what is reported; what decides between allocations
RETAINED = (0.0, 1.5)  # bounds of the metric retained: no worse than knowing nothing; far above 1 there is no signal


def run(suite: Suite, cells: Sequence[Cell], out: str | Path, redo: bool = False) -> None:
    """Measures every cell that the file does not hold, and writes its row at once.

    Args:
        suite: What is compared.
        cells: Cells of `suite.cells`.
        out: Parquet file of the rows.
        redo: Whether to measure cells again that have a row.

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
    with stage("benchmark", len(todo), "cells") as work:
        for bench, group in _benches(suite, todo, accelerator):
            for cell, row in bench.rows(group, work):
                row |= {"settings": cell.fingerprint(suite), "plan": suite.plan(), "versions": versions}
                on_main(accelerator, lambda row=row: results.add(row))  # type: ignore[misc]
                work.count(work.done + 1)
                figures = (
                    f"{row['metric']} {row['value']:.4f} of {row['dense']:.4f}, test KL {row['mean_kl']:.4f}, "
                    f"held-out KL {row['held_out_kl']:.4f}"
                )
                accelerator.print(f"[{work.done}/{len(todo)}] {cell}: {figures}", flush=True)


def _benches(suite: Suite, cells: Sequence[Cell], accelerator: Accelerator) -> Iterator[tuple["Bench", list[Cell]]]:
    """The model and data of each run in turn, with its cells."""
    for task, group in groupby(cells, key=lambda cell: cell.task):
        yield Bench.load(suite, task, accelerator), list(group)


@dataclass
class Bench:
    """Measures the cells of one run on one model, one test split and one validation split.

    Attributes:
        suite: What is compared.
        name: Name of the run.
        session: Model, data, and arms of both kinds.
        calibration: Examples that seeds draw from.
    """

    suite: Suite
    name: str
    session: Session
    calibration: Dataset

    @classmethod
    def load(cls, suite: Suite, name: str, accelerator: Accelerator) -> "Bench":
        """Loads model and data of a run.

        Raises:
            ValueError, OSError: For a model or data that cannot work.
        """
        settings = suite.settings(name)
        splits = main_first(accelerator, lambda: load_splits(settings.task))
        model, processor = load_model(settings.model, settings.task, splits)
        moved = model.to(accelerator.device)
        session = make_session(settings, moved, processor, splits, accelerator, model.dtype)  # nothing is saved
        return cls(suite, name, session, splits["calibration"])

    def rows(self, cells: Sequence[Cell], work: Work) -> Iterator[tuple[Cell, dict[str, Any]]]:
        """Measures cells of this run; one choice serves all its compensations, one search all its sizes
        and both allocations.

        Args:
            cells: Cells of this run.
            work: The stage that says which of them is under way.
        """
        for seed, cells_of_seed in groupby(cells, key=lambda cell: cell.seed):
            draw = self.draw(seed)
            shared: dict[str, list[Cell]] = {}
            for cell in cells_of_seed:
                shared.setdefault(cell.choice(self.suite), []).append(cell)
            for sharing in shared.values():
                work.count(work.done, note=str(sharing[0]))
                choices = draw.choose(sharing)
                for cell in sharing:
                    work.count(work.done, note=str(cell))
                    yield cell, self.row(cell, draw, choices[cell.target, cell.allocation])

    def draw(self, seed: int) -> Draw:
        """Draws the seed's calibration data; what the dense model says on them goes on a record of their own."""
        task, settings = self.session.task, self.suite.settings(self.name)
        drawn = calibration_batches(settings.task, task, self.calibration, seed)
        whole = settings, task, self.session.dense, self.session.example
        drawn["calibration"] = affordable(*whole, drawn["calibration"], seed)
        batches = {**self.session.batches, **drawn}
        return Draw(self.suite, self.name, replace(self.session, batches=batches, outputs=DenseOutputs()), seed)

    def row(self, cell: Cell, draw: Draw, choice: Choice) -> dict[str, Any]:
        """Cuts, refits and measures one cell."""
        session, dense, chance, cost = self.session, self.dense, self.chance, choice.cost
        small = cut(session.dense, choice.keep, self.suite.layout)
        figures = draw.refit(small, choice.keep, cell.compensation)
        forward = forward_of(small, session.task)
        pruned, held_out = (self.comparison.measured(forward, split, intervals=False) for split in MEASURED_ON)
        metric = session.task.main_metric
        value, whole = pruned.metrics[metric], dense.metrics[metric]
        return {
            **dict(zip(KEY, cell.key, strict=True)),
            "model": session.settings.model.name,
            "family": cell.family,
            "sparsity": cell.sparsity,
            "metric": metric,
            "greater_is_better": session.task.greater_is_better,
            "value": value,
            "dense": whole,
            "chance": chance,
            "retained": retained(value, whole, chance, metric),
            "loss": pruned.loss,
            "losses": json.dumps(pruned.scores.losses.tolist()),
            "dense_loss": dense.loss,
            "mean_kl": float(pruned.kl.mean()),
            "held_out_kl": float(held_out.kl.mean()),
            "metrics": json.dumps(pruned.metrics),
            "parameters": choice.parameters + (figures.parameters if figures else 0),
            "dense_parameters": session.totals["parameters"],
            "kept": json.dumps({site: len(units) for site, units in choice.keep.items()}),
            "pulls": cost.pulls,
            "search_seconds": cost.seconds,
            "forward_tokens": round(cost.forward_tokens),
            "backward_tokens": round(cost.backward_tokens),
            **_compensation_columns(figures),
        }

    @cached_property
    def comparison(self) -> Comparison:
        """Measures models beside the dense one, whose test outputs all draws share."""
        return Comparison(self.session)

    @cached_property
    def dense(self) -> Evaluation:
        """The dense model on the test split."""
        return self.comparison.measured(self._say, "test", beside_dense=False, intervals=False)

    @cached_property
    def chance(self) -> float:
        """Main metric of a model that knows nothing, as the suite says, else as `constant_answer` gives it."""
        given = self.suite.runs[self.name].chance
        if given is not None:
            return given
        device = self.session.accelerator.device
        targets = []
        for number, batch in enumerate(over(self.session.batches["test"], "targets")):
            readout = self._say(number, batch.to(device))
            targets.append(readout.targets[readout.targets != NO_TARGET].cpu().numpy())
        return constant_answer(self.session.task, self.dense.scores, np.concatenate(targets))

    def _say(self, number: int, batch: Batch) -> Readout:
        """What the dense model says on a test batch, from the record."""
        return self.session.dense_on("test", number, batch)


def _compensation_columns(figures: CompensationFigures | None) -> dict[str, Any]:
    """What a refit cost, and at how many of the sites that were cut it was taken."""
    if figures is None:
        return {"compensation_seconds": 0.0, "compensation_tokens": 0, "sites_refitted": 0, "sites_cut": 0}
    return {
        "compensation_seconds": figures.seconds,
        "compensation_tokens": figures.forward_tokens,
        "sites_refitted": sum(not site.reason for site in figures.sites),
        "sites_cut": len(figures.sites),
    }


def retained(value: float, dense: float, chance: float, metric: str) -> float:
    """Gives (value - chance) / (dense - chance), whichever way is better, within `RETAINED`.

    Perplexities go by their logs; it is 0 where the dense model is at chance itself.
    """
    if metric == "perplexity":
        value, dense, chance = np.log([value, dense, chance])
    if dense == chance or not np.isfinite(value):
        return 0.0
    return float(np.clip((value - chance) / (dense - chance), *RETAINED))


def constant_answer(task: Task, scores: Scores, targets: Any) -> float:
    """Gives the main metric of the best answer that is the same for every example: the majority class, the mean
    number, or, for a metric of losses, the distribution of the targets, whose loss is its entropy.

    Args:
        task: Task that says what the metric is.
        scores: Scores of the dense model on the split; what is right is read.
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
