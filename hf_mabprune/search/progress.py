"""What a person sees while a search goes on: a bar with pulls/s and time left, one line a round.

Everything here is for the main process only.
"""

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from hf_mabprune.search.loop import Search
from hf_mabprune.search.result import Round


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
        rounds, result, rule = self.search.rounds, self.search.result, self.search.rule
        last = f"KL {result.rounds[-1].kl:.4f}" if result.rounds else ""
        described = f"round {min(self.search.number, rounds)}/{rounds} {last}"
        if rule.measured:
            described = f"allocation {rule.measured}/{rule.planned}"
        self.bar.update(self.task, completed=int(result.pulls.sum()), description=described)
        if self.visible and done:
            self.console.print(
                f"round {done.number}/{rounds}   {done.removed:,} arms removed   KL {done.kl:.4f}   "
                f"loss {done.loss:.3f} (dense {done.loss_before:.3f})   {done.pulls:,} pulls   {done.seconds:.0f} s"
            )
