"""What a person sees while a run goes on: one header, a bar with pulls/s and time left, one line a round.

Everything here is for the main process only.
"""

from types import TracebackType

from accelerate import Accelerator
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text
from transformers import PreTrainedModel

from hf_mabprune.arms import KINDS, ArmTable
from hf_mabprune.evaluation.quality import Evaluation
from hf_mabprune.search.loop import Round, Search
from hf_mabprune.tasks.base import Task as PruningTask


def header(model: PreTrainedModel, arms: ArmTable, accelerator: Accelerator) -> str:
    """The model, its arms and where it runs, in one line."""
    names = {"neuron": ("neurons", "neuron blocks"), "head": ("heads", "key-value groups")}
    counts = [
        f"{len(rows):,} {names[kind][int(arms.units[rows].max()) > 1]}"
        for kind in KINDS
        if len(rows := arms.of_kind(kind))
    ]
    processes = f" x {accelerator.num_processes} processes" if accelerator.num_processes > 1 else ""
    where = f"{accelerator.device} {str(model.dtype).removeprefix('torch.')}{processes}"
    return " | ".join([model.config.model_type, f"{model.config.num_hidden_layers} layers", *counts, where])


def baseline(task: PruningTask, dense: Evaluation) -> str:
    """What the dense model reaches, in one line: a wrong head or wrong labels are seen before the search."""
    low, high = dense.intervals[task.main_metric]
    return (
        f"dense: {task.main_metric} {dense.metrics[task.main_metric]:.4g} ({low:.4g}-{high:.4g}), "
        f"loss {dense.loss:.3f} on {len(dense.scores.losses):,} test examples"
    )


class PullsPerSecond(ProgressColumn):
    """Pulls a second, over the last moments."""

    def render(self, task: Task) -> Text:
        """The column's text."""
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f} pulls/s")


class SearchProgress:
    """Shows how a search goes. Use as a context manager.

    Args:
        search: That is under way.
        visible: False on all processes but the main one.
    """

    def __init__(self, search: Search, visible: bool) -> None:
        self.search = search
        self.visible = visible
        self.console = Console(highlight=False, soft_wrap=True)
        self.bar = Progress(
            TextColumn("{task.description}"),
            PullsPerSecond(),
            BarColumn(bar_width=20),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=not visible or not self.console.is_terminal,
        )
        self.task = self.bar.add_task("", total=search.planned, completed=int(search.result.pulls.sum()))

    def __enter__(self) -> "SearchProgress":
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def show(self, done: Round | None) -> None:
        """After every step; `done` is the round that has ended with it, if one has."""
        rounds, result = self.search.config.number_of_rounds, self.search.result
        last = f"KL {result.rounds[-1].kl:.4f}" if result.rounds else ""
        described = f"round {min(self.search.number, rounds)}/{rounds} {last}"
        if (allocation := self.search.allocation) and allocation.cost.pulls:
            described = f"allocation {allocation.cost.pulls}/{allocation.trials * len(self.search.sizes)}"
        self.bar.update(self.task, completed=int(result.pulls.sum()), description=described)
        if self.visible and done:
            self.console.print(
                f"round {done.number}/{rounds}   {done.removed:,} arms removed   KL {done.kl:.4f}   "
                f"loss {done.loss:.3f} (dense {done.loss_before:.3f})   {done.pulls:,} pulls   {done.seconds:.0f} s"
            )
