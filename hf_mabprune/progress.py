"""What a person sees of work that takes long: bars on a terminal, elsewhere a line now and then.

A stage of a run is opened with `stage`, where its work is done; a loop in a stage goes through `over`:

    with stage("statistics"):
        for batch in over(batches, "gradients"):
            ...

All that is open stands in one display, a line each, with count, rate and time left; it is gone when the outermost
stage ends. Where there is no terminal, a stage that takes long says so on stderr: once after `FIRST` seconds, then
every `EVERY`. Nothing is shown by the other processes of a launch, outside of stages, where the streams are closed, or
with MABPRUNE_PROGRESS=off in the environment. No number depends on any of it.
"""

import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any, Literal, TextIO, TypeVar, get_args

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

StageName = Literal[
    # of a run, in the order of pipeline.py
    "reading data",
    "loading model",
    "vocabulary",
    "counting arms",
    "latency table",
    "rehearsal",
    "dense model on test",
    "dense model on validation",
    "statistics",
    "search",
    "dense model on record",
    "layout",
    "refit",
    "recovery",
    "evaluation",
    "random draws",
    "criteria alone",
    "certification",
    "saving",
    "upload",
    # of other commands
    "trial passes",
    "verification",
    "export",
    "report",
    "sparsity",
    "fine-tuning",
    "benchmark",
]
STAGES: tuple[str, ...] = get_args(StageName)

FIRST, EVERY = 10.0, 30.0  # seconds before a stage says something where there is no terminal, and between two lines
TICK = 0.25  # seconds between two looks at what is open
BRIEF = 1.0  # seconds that a loop lasts before a terminal shows it
BARS = 20, 8  # columns of a bar where there is room, and where there is not
MOST_CUT = 16  # columns that are left of what is done at least
WINDOW = 30.0  # seconds that a rate is taken over
WAIT = 1.0  # seconds that work waits at most for a terminal to be written to

SWITCH = "MABPRUNE_PROGRESS"  # in the environment: "off" shows nothing

T = TypeVar("T")


@dataclass(eq=False)
class Work:
    """Something under way.

    Attributes:
        name: What is done.
        started: Time when it began.
        total: Number of steps; None where nobody knows.
        unit: Name of the steps, in the plural.
        done: Steps that are done.
        note: What else to say.
        said: Whether there was a line about it.
        samples: Times, and what was done then, newest last.
    """

    name: str
    started: float
    total: int | None = None
    unit: str = "steps"
    done: int = 0
    note: str = ""
    said: bool = False
    samples: deque[tuple[float, int]] = field(default_factory=deque)

    def count(self, done: int, total: int | None = None, unit: str | None = None, note: str | None = None) -> None:
        """Says where it is; steps of another unit are counted afresh.

        Args:
            done: Steps that are done.
            total, unit: Number and name of the steps, where they are others than before.
            note: What else to say, where that is new.
        """
        if unit is not None and unit != self.unit:
            self.samples = deque()
        self.done, self.total, self.unit = done, total or self.total, unit or self.unit
        self.note = self.note if note is None else note

    def sample(self, now: float) -> None:
        """Notes what is done by now, for the rate; what is older than `WINDOW` goes once something has moved since."""
        samples = self.samples
        if len(samples) > 1 and samples[-2][1] == samples[-1][1] == self.done:
            samples.pop()
        samples.append((now, self.done))
        while len(samples) > 2 and now - samples[1][0] >= WINDOW and samples[1][1] < self.done:
            samples.popleft()

    def rate(self) -> float | None:
        """Steps a second, lately; None as long as nothing is known of it."""
        samples = self.samples
        if len(samples) < 2 or samples[-1][1] <= samples[0][1]:
            return None
        return (samples[-1][1] - samples[0][1]) / (samples[-1][0] - samples[0][0])

    def cells(self, now: float) -> tuple[str, str, str]:
        """Gives in words what is done, how fast, and the time that is left, or that it has taken so far."""
        counted = f"{self.done:,}/{self.total:,} {self.unit}" if self.total else ""
        rate = self.rate()
        if rate is None or not self.total:
            return counted, "", f"{_clock(now - self.started)} so far"
        speed = f"{rate:,.{0 if rate >= 10 else 1}f}/s" if rate >= 0.1 else f"{1 / rate:,.0f} s each"
        return counted, speed, f"{_clock(max(self.total - self.done, 0) / rate)} left"

    def title(self) -> str:
        """Gives name and note."""
        return f"{self.name}: {self.note}" if self.note else self.name


class _Terminal(Console):
    """A console that never hides the cursor, so that none stays hidden, however the process ends."""

    def show_cursor(self, show: bool = True) -> bool:
        """Leaves it as it is."""
        return False


class Display:
    """Shows all works that are open, from the outermost to the innermost.

    A thread of its own looks at them and writes: what the work itself does is to count, and signals, which reach the
    main thread alone, cannot leave a terminal half written.

    Args:
        clock: Gives the time in seconds.
        threaded: Whether the thread is started; without it `tick` is called by somebody else.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, threaded: bool = True) -> None:
        self.clock, self.threaded, self.process = clock, threaded, os.getpid()
        self.works: list[Work] = []
        self._heard = self._idle = -EVERY  # when something was said last, and when the last work ended
        self._terminal: TextIO | None = None
        self._live: Live | None = None
        self._width = 80  # of the terminal
        self._asked: SimpleQueue[threading.Event] = SimpleQueue()
        self._thread: threading.Thread | None = None  # there as long as something is open
        self._lock = threading.Lock()  # on that

    def begin(self, name: str, total: int | None = None, unit: str = "steps", done: int = 0) -> Work:
        """Opens a work inside of those that are open."""
        work = Work(name, self.clock(), total, unit, done)
        work.sample(work.started)
        if not self.works:
            self._terminal = _terminal()
            self._heard = work.started if work.started - self._idle > FIRST else self._heard
        with self._lock:
            self.works.append(work)
            if self.threaded and self._thread is None:
                self._thread = threading.Thread(target=self._run, name="hf_mabprune-progress", daemon=True)
                self._thread.start()
        return work

    def end(self, work: Work) -> None:
        """Closes a work; those inside it stay."""
        if work in self.works:
            self.works.remove(work)

    def end_from(self, depth: int) -> None:
        """Closes all works but the outermost so many; the last one takes the display with it."""
        del self.works[depth:]
        if not self.works:
            self._idle = self.clock()
            if self._live:
                self.look()

    def look(self) -> None:
        """Has what is open shown at once on a terminal, and waits for that; elsewhere a line comes when it is due."""
        if not self.threaded:
            self.tick()
        elif self._terminal is not None:
            seen = threading.Event()
            self._asked.put(seen)
            seen.wait(WAIT)

    def tick(self) -> None:
        """Looks at what is open, and shows it where that is due."""
        works, now = list(self.works), self.clock()
        for work in works:
            work.sample(now)
        try:
            if self._terminal is not None:
                self._paint(works)
            elif works and self._is_due(works[0], now):
                works[0].said, self._heard = True, now
                _write(_in_words(works, now))
        except Exception:  # a stream that has gone must not end the work
            with suppress(Exception):
                self._stop()
            self._terminal = None

    def _run(self) -> None:
        while True:
            with suppress(Empty):
                seen = self._asked.get(timeout=TICK)
                self.tick()
                seen.set()
                continue
            self.tick()
            with self._lock:
                if not self.works and self._live is None and self._asked.empty():
                    self._thread = None
                    return

    def _is_due(self, outermost: Work, now: float) -> bool:
        """Whether a line is due: the first of a stage, or the next after a while in which there was none."""
        return (not outermost.said and now - outermost.started >= FIRST) or now - self._heard >= EVERY

    def _paint(self, works: Sequence[Work]) -> None:
        if works and self._live is None:
            console = _Terminal(file=self._terminal, force_terminal=True, highlight=False, soft_wrap=True)
            self._live = Live(
                console=console,
                auto_refresh=False,
                transient=True,
                redirect_stdout=_is_terminal(sys.stdout),  # what goes elsewhere must arrive there
                redirect_stderr=_is_terminal(sys.stderr),
            )
            self._live.start()
            self._width = console.width
        if self._live and works:
            self._live.update(self._table(works), refresh=True)
        else:
            self._stop()

    def _stop(self) -> None:
        live, self._live = self._live, None
        if live:
            live.stop()

    def _table(self, works: Sequence[Work]) -> Table:
        """Makes a line for each work: what, bar, count, rate, time; where that is too long, what is cut short."""
        now, table = self.clock(), Table.grid(padding=(0, 1))
        rows = [
            ("  " * depth + work.title(), work, work.cells(now))
            for depth, work in enumerate(works)
            if not depth or work.name in STAGES or now - work.started >= BRIEF
        ]
        figures = sum(max(map(len, column)) + 1 for column in zip(*(cells for *_, cells in rows), strict=True))
        room = max(self._width - figures - 1, MOST_CUT + BARS[1])
        width = BARS[max(len(title) for title, *_ in rows) + BARS[0] > room]
        for _ in range(5):
            table.add_column(no_wrap=True)
        for title, work, cells in rows:
            bar = ProgressBar(work.total, work.done, width=width, pulse=not work.total, animation_time=now)
            table.add_row(_cut_to(title, room - width), bar, *cells)
        return table


@contextmanager
def stage(name: StageName, total: int | None = None, unit: str = "steps", done: int = 0) -> Iterator[Work]:
    """Shows that a stage is under way while the context is open, or the function that it decorates runs.

    Args:
        name: Name of the stage.
        total: Number of steps, where the stage counts them by `count` of what the context gives.
        unit: Name of the steps, in the plural.
        done: Steps that are done already.
    """
    if os.environ.get("RANK", "0") != "0" or os.environ.get(SWITCH, "").lower() in ("off", "0"):
        yield Work(name, 0.0)
        return
    display = _display()
    depth = len(display.works)
    if there := [work for work in display.works if work.name == name]:  # one function of the stage calls another
        yield there[0]
        return
    try:
        work = display.begin(name, total, unit, done)
        display.look()
        yield work
    finally:
        display.end_from(depth)


def over(items: Iterable[T], name: str, unit: str = "batches", total: int | None = None) -> Iterator[T]:
    """Gives the items in their order, and shows how many are done where a stage is open.

    Args:
        items: What is gone through.
        name: What is done with each.
        unit: Name of the items, in the plural.
        total: Number of the items, where they do not tell it themselves.
    """
    display = _display()
    if not display.works:  # nothing would close a work that an exception leaves open
        yield from items
        return
    work = display.begin(name, len(items) if isinstance(items, Sized) else total, unit)
    try:
        for item in items:
            yield item
            work.done += 1
    finally:
        display.end(work)


_shared = Display()


def _display() -> Display:
    """Gives the display of this process; one that was forked begins with nothing open."""
    global _shared
    if _shared.process != os.getpid():
        _shared = Display()
    return _shared


def _terminal() -> TextIO | None:
    """Gives the stream that bars go to: stderr, else stdout, if it is a terminal that can move its cursor."""
    if os.environ.get("TERM", "").lower() in ("dumb", "unknown"):
        return None
    return next((stream for stream in (sys.stderr, sys.stdout) if _is_terminal(stream)), None)


def _cut_to(text: str, columns: int) -> str:
    return text if len(text) <= columns else f"{text[: columns - 3]}..."


def _is_terminal(stream: Any) -> bool:
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError):  # there is none, or it is closed
        return False


def _write(line: str) -> None:
    """Writes a line to stderr, where there is one."""
    if sys.stderr is not None:
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()


def _in_words(works: Sequence[Work], now: float) -> str:
    """Says in one line what is open, from the outermost work to the innermost."""
    return " > ".join(", ".join(filter(None, (work.title(), *work.cells(now)))) for work in works)


def _clock(seconds: float) -> str:
    """Gives a duration as 0:07, 12:34 or 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
