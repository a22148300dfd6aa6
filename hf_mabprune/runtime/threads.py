"""How many threads a run on the CPU computes with: all, or fewer while another process keeps the cores busy.

OpenMP's threads wait for each other by spinning. Alone that is fastest; beside another busy process the one that is
waited for is not running, and a run can take ten times as long. Which it is changes while a run goes on, so now and
then a trial is timed with all threads and with fewer, and the fastest is taken. Rounding depends on the number of
threads, so a number that somebody has chosen is left alone, and so are several processes, which must agree to the bit.
"""

import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psutil
import torch
from accelerate import Accelerator
from threadpoolctl import ThreadpoolController
from torch import nn
from torch.nn.functional import gelu, layer_norm, linear
from transformers import PreTrainedConfig, PreTrainedModel

VARIABLES = (
    "OMP_NUM_THREADS", "OMP_THREAD_LIMIT", "MKL_NUM_THREADS", "MKL_DOMAIN_NUM_THREADS", "OPENBLAS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)  # fmt: skip
EVERY = 20.0  # seconds between trials, at least
SHARE = 0.015  # of the time that trials may take
ROUNDS = 5  # timings of each number
CLEAR = 3.0  # times as slow as another number: two timings are enough
CALM = 2  # trials in a row that more threads must win: a moment in which another process waits is no idle machine
GAIN = 0.85  # of the time with the number in use that another one must stay below
ROWS = 768  # positions that a trial passes through a layer, fewer where the layer is large
OPERATIONS = 1e9  # of a trial, about

_active: "ThreadChoice | None" = None  # of the run that is under way


class ThreadChoice:
    """The number of threads of one run.

    Args:
        counts: Numbers to choose from, the one in use first: all.
        trial: Work that is timed; it must take no part in the run.
        say: Receiver of one line whenever the number changes.
        use: Function that sets the number of threads.
        clock: Function that gives seconds.
    """

    def __init__(
        self,
        counts: Sequence[int],
        trial: Callable[[], object],
        say: Callable[[str], object],
        use: Callable[[int], object],
        clock: Callable[[], float],
    ) -> None:
        self.counts, self.trial, self.say, self.use, self.clock = tuple(counts), trial, say, use, clock
        self.now = self.counts[0]
        self.due = clock()
        self.calm = 0  # trials in a row that more threads would have won
        self.for_latency: int | None = None

    def check(self) -> None:
        """Times the numbers against each other where that is due, and goes on with the fastest."""
        start = self.clock()
        if start < self.due:
            return
        times = self._times()
        best = min(times, key=times.__getitem__)
        better = times[best] < GAIN * times[self.now]
        self.calm = self.calm + 1 if better and best > self.now else 0
        if better and (best < self.now or self.calm >= CALM):
            self.now, self.calm = best, 0
            self.say(described(best, max(self.counts), times))
        self.use(self.now)
        end = self.clock()
        self.due = end + max(EVERY, (end - start) / SHARE)

    def _times(self) -> dict[int, float]:
        """Number -> median seconds of a trial; the numbers take turns so that noise hits them alike."""
        taken: dict[int, list[float]] = {count: [] for count in self.counts}
        for number in range(ROUNDS + 1):
            for count in self.counts:
                self.use(count)
                start = self.clock()
                self.trial()
                if number:  # the first wakes the threads up
                    taken[count].append(self.clock() - start)
            best, second = sorted(min(each, default=0.0) for each in taken.values())[:2]
            if number >= 2 and second > CLEAR * best:
                break
        return {count: statistics.median(each) for count, each in taken.items()}

    @contextmanager
    def fixed(self) -> Iterator[None]:
        """Keeps the number as it was when this was first used, without trials: what is timed can be compared."""
        due, self.due = self.due, float("inf")
        self.for_latency = self.for_latency or self.now
        self.use(self.for_latency)
        try:
            yield
        finally:
            self.due = due
            self.use(self.now)


def described(now: int, most: int, times: dict[int, float]) -> str:
    """The line that a person sees when the number changes.

    Args:
        now: Number that is taken.
        most: Number that there are.
        times: Number -> seconds of a trial.
    """
    busy = ", other processes seem busy" if now < most else ""
    found = ", ".join(f"{1000 * times[count]:.3g} ms with {count}" for count in sorted(times))
    return f"threads: {now} of {most}{busy} (a trial takes {found})"


class Pools:
    """The threads of this process: torch's, and those of the BLAS libraries that NumPy and SciPy call."""

    def __init__(self, most: int) -> None:
        self.most, self.own = most, torch.get_num_threads()
        libraries = ThreadpoolController().select(user_api="blas").lib_controllers
        self.blas = [(library, int(library.num_threads)) for library in libraries]

    def use(self, count: int) -> None:
        """Sets the number everywhere; `most` leaves libraries that had more of their own at that."""
        torch.set_num_threads(count)
        for library, own in self.blas:
            library.set_num_threads(max(own, count) if count == self.most else count)

    def restore(self) -> None:
        """Puts back what there was."""
        torch.set_num_threads(self.own)
        for library, own in self.blas:
            library.set_num_threads(own)


@contextmanager
def chosen(accelerator: Accelerator) -> Iterator[None]:
    """Chooses the number of threads while the context is open, and puts it back at the end.

    Nothing is measured or changed with a GPU, several processes, one core, a number of threads that was chosen by
    environment variables or `torch.set_num_threads`, or inside another such context. `accelerate launch` sets one
    thread where nobody says how many: that is nobody's choice, and all are tried.

    Args:
        accelerator: Of the run; it prints the line about a change.
    """
    global _active
    own = torch.get_num_threads()
    most = default_threads() if set_by_launcher() else own
    alone = accelerator.device.type == "cpu" and accelerator.num_processes == 1
    if _active or not alone or most == 1 or (not set_by_launcher() and is_chosen(own)):
        yield
        return
    pools = Pools(most)
    if most != own:
        pools.use(most)
    hook = nn.modules.module.register_module_forward_pre_hook(_before_a_pass(pools, accelerator.print))
    try:
        yield
    finally:
        hook.remove()
        _active = None
        pools.restore()


def _before_a_pass(pools: Pools, say: Callable[[str], object]) -> Callable[[nn.Module, Any], None]:
    """A hook of all modules: whatever stage a run is in, it passes through models.

    A trial is made from the first model's shapes and not from the model itself, which may be masked, recorded or
    differentiated at that moment.
    """
    owner = threading.get_ident()  # the number of threads is that of one Python thread

    def hook(module: nn.Module, arguments: Any) -> None:
        global _active
        if not isinstance(module, PreTrainedModel) or threading.get_ident() != owner:
            return
        if _active is None:
            counts, trial = counts_of(pools.most), trial_of(module.config)
            _active = ThreadChoice(counts, trial, say, pools.use, time.perf_counter)
        _active.check()

    return hook


@contextmanager
def fixed() -> Iterator[None]:
    """Keeps one number of threads while latencies are measured, the same one in a whole run."""
    if _active is None:
        yield
        return
    with _active.fixed():
        yield


def counts_of(most: int) -> tuple[int, ...]:
    """Numbers of threads that are tried: all, half of them, one."""
    return tuple(sorted({most, max(1, most // 2), 1}, reverse=True))


def is_chosen(threads: int) -> bool:
    """Whether somebody has chosen this number of threads: torch takes the cores that it may use, by default.

    Torch asks MKL, which counts cores, or else OpenMP, which counts what each core runs at a time.
    """
    if any(os.environ.get(name) for name in VARIABLES):
        return True
    return threads not in (logical_threads(), default_threads())


def set_by_launcher() -> bool:
    """Whether `accelerate launch` has set one thread by itself, as it does where nobody says how many.

    One thread of a user's own is told apart by MKL_NUM_THREADS, which the launcher never sets.
    """
    others = any(os.environ.get(name) for name in VARIABLES if name != "OMP_NUM_THREADS")
    return "ACCELERATE_MIXED_PRECISION" in os.environ and os.environ.get("OMP_NUM_THREADS") == "1" and not others


def logical_threads() -> int:
    """What the cores that this process may use run at a time."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_threads() -> int:
    """Number of cores that this process may use."""
    return min(logical_threads(), psutil.cpu_count(logical=False) or logical_threads())


def trial_of(config: PreTrainedConfig) -> Callable[[], torch.Tensor]:
    """Products of the shapes of one layer of a model; no modules, no random numbers, no gradients.

    Args:
        config: Of the model. A family without the usual names of sizes is taken for a small one.
    """
    shapes = config.get_text_config()
    hidden = int(getattr(shapes, "hidden_size", None) or 256)
    inner = int(getattr(shapes, "intermediate_size", None) or 4 * hidden)
    rows = int(min(ROWS, max(16, OPERATIONS // (4 * hidden * (2 * hidden + inner)))))
    states = torch.linspace(-1, 1, rows * hidden).view(rows, hidden)
    sizes = (hidden, hidden), (inner, hidden), (hidden, inner)
    square, up, down = (torch.full(size, 1 / hidden) for size in sizes)

    @torch.inference_mode()
    def trial() -> torch.Tensor:
        with torch.autocast("cpu", enabled=False):
            found = states
            for _ in range(4):
                found = linear(found, square)
            return layer_norm(linear(gelu(linear(found, up)), down) + states, (hidden,))

    return trial
