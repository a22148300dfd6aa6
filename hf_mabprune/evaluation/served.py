"""Models as programs run them, side by side: quality on the test split, bytes, and times measured in turns.

Symbols: B examples of a batch, T tokens of each.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from rich import box
from rich.console import Console
from rich.table import Table

from hf_mabprune.evaluation.quality import Evaluation, Forward, changed_answers, evaluate, paired_difference
from hf_mabprune.progress import over
from hf_mabprune.runtime import threads
from hf_mabprune.tasks.base import Task
from hf_mabprune.tasks.batch import Batch, typical_example
from hf_mabprune.tasks.readout import Readout

SIZES = ((1, 32), (32, 128))  # B, T of batches that are timed
TURNS = 15
WARM = 2  # turns that are not counted


@dataclass(frozen=True)
class Served:
    """A model in a program.

    Attributes:
        run: Gives the outputs, as those of the model, for inputs by name, on the CPU.
        bytes: Of what the program reads.
    """

    run: Callable[..., Any]
    bytes: int


@dataclass(frozen=True)
class ServedFigures:
    """What a model is worth in a program.

    Attributes:
        metric: Main metric on the test split.
        interval: Its 95% interval (bootstrap over examples).
        more: By how much the metric is above that of the first model, with its 95% interval (in pairs).
        kl: Mean divergence from the first model, in nats.
        changed: Part of the answers that are others than those of the first model; None where there are no classes.
        bytes: Of what the program reads.
        milliseconds: Batch, as "B x T" -> median time of a forward pass.
        speedup: Batch -> time of the first model over this one's, median over turns.
    """

    metric: float
    interval: tuple[float, float]
    more: tuple[float, float, float]
    kl: float
    changed: float | None
    bytes: int
    milliseconds: dict[str, float]
    speedup: dict[str, float]


def measure_served(
    models: Mapping[str, Served], task: Task, batches: Sequence[Batch], accelerator: Accelerator, longest: int
) -> dict[str, ServedFigures]:
    """Measures models on the same examples, and times them in turns.

    Args:
        models: Name -> model; the others are compared with the first one.
        task: Their task.
        batches: Test examples.
        accelerator: Accelerate's engine, of one process.
        longest: Number of tokens that the models have positions for.
    """
    first, *_ = models
    forwards = {name: _forward(served, task) for name, served in models.items()}
    found = {
        name: evaluate(forward, task, batches, accelerator, forwards[first]) for name, forward in forwards.items()
    }
    times = {
        f"{count} x {length}": _times(models, task, batches, count, min(length, longest)) for count, length in SIZES
    }
    metric = task.main_metric
    return {
        name: ServedFigures(
            metric=own.metrics[metric],
            interval=own.intervals[metric],
            more=paired_difference(metric, own, found[first]),
            kl=float(own.kl.mean()),
            changed=_changed(own, found[first], task),
            bytes=models[name].bytes,
            milliseconds={size: statistics.median(taken[name]) for size, taken in times.items()},
            speedup={size: _ratio(taken[first], taken[name]) for size, taken in times.items()},
        )
        for name, own in found.items()
    }


def served_table(metric: str, rows: Mapping[str, ServedFigures]) -> str:
    """Lays out a line a model, for a terminal."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("on test")
    sizes = list(next(iter(rows.values())).milliseconds)
    for heading in (f"{metric} (95%)", "more (95%)", "KL", "changed", "MB", *(f"ms at {size}" for size in sizes)):
        table.add_column(heading, justify="right")
    scale = 1 if metric == "perplexity" else 100
    for name, row in rows.items():
        value, low, high = (f"{scale * number:+.1f}" for number in row.more)
        metric_low, metric_high = row.interval
        table.add_row(
            name,
            f"{scale * row.metric:.1f} ({scale * metric_low:.1f}-{scale * metric_high:.1f})",
            f"{value} ({low} to {high})" if any(row.more) else "",
            f"{row.kl:.4f}",
            "" if row.changed is None else f"{row.changed:.1%}",
            f"{row.bytes / 1e6:.1f}",
            *(f"{row.milliseconds[size]:.2f} ({row.speedup[size]:.2f}x)" for size in sizes),
        )
    console = Console(width=150, color_system=None, markup=False, emoji=False)
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().splitlines() if line.strip())


def _changed(own: Evaluation, first: Evaluation, task: Task) -> float | None:
    answered = task.predicts_classes and task.keeps_predictions and own.scores.answers.any()
    return changed_answers(own.scores, first.scores)[0] if answered else None


def _forward(served: Served, task: Task) -> Forward:
    def forward(number: int, batch: Batch) -> Readout:
        here = batch.to(torch.device("cpu"))
        return task.read(task.logits(served.run(**task.inputs(here))), here)

    return forward


@torch.inference_mode()
def _times(
    models: Mapping[str, Served], task: Task, batches: Sequence[Batch], count: int, length: int
) -> dict[str, list[float]]:
    """Times forward passes in milliseconds, the models taking turns so that noise hits them alike."""
    example = task.inputs(typical_example(batches, length))
    inputs = {name: tensor.expand(count, *tensor.shape[1:]).contiguous() for name, tensor in example.items()}
    times: dict[str, list[float]] = {name: [] for name in models}
    with threads.fixed():
        for turn in over(range(TURNS + WARM), f"{count} x {length}", "turns"):
            for name, served in models.items():
                start = time.perf_counter()
                served.run(**inputs)
                if turn >= WARM:
                    times[name].append(1000 * (time.perf_counter() - start))
    return times


def _ratio(first: list[float], other: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(first, other, strict=True))
