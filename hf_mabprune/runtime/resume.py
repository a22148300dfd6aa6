"""A run that can be stopped and taken up again: its lock, its saved search, and the signals that ask it to leave.

While a run goes on, a folder lies beside its output folder, with the lock, the resolved config and the state of the
search. It is written anew after every round, and goes when the output is in place.
"""

import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
import yaml
from accelerate import Accelerator
from filelock import FileLock, Timeout
from torch import nn

from hf_mabprune.config import PruneConfig
from hf_mabprune.runtime.files import (
    PARTIAL,
    Protected,
    check_output_dir,
    clear_leftovers,
    protected_by,
    refuse_other_files,
    remove_files,
    write_atomically,
)
from hf_mabprune.runtime.processes import on_main
from hf_mabprune.runtime.saved import fingerprint, pack, unpack

SAVE_EVERY = 60.0  # seconds between saves within a round


class Resumable(Protocol):
    """What can be written down and taken up again: a search."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that `load_state_dict` needs: arrays, numbers, and plain dicts and lists of them."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a state, as if there had been no interruption."""


@dataclass(frozen=True)
class RunPaths:
    """Where a run that goes on has its files. `artifacts.run_folder.RunFolder` spells them.

    Attributes:
        output: Folder that the run leaves behind.
        written: Settings in that folder, there once the run has finished.
        logs: Folder of trackers that write files, where the settings name no other.
        state: Folder of the next three, there while the run goes on.
        lock: File that only one run can hold.
        config: Settings of the run.
        search: The search as it was saved last.
    """

    output: Path
    written: Path
    logs: Path
    state: Path
    lock: Path
    config: Path
    search: Path

    def names(self) -> list[str]:
        """Lists the names of everything that can be in the folder of the state."""
        saved = [path.name for path in (self.search, self.config)]
        return [*saved, *(f"{name}{PARTIAL}" for name in saved), self.lock.name]


class Interrupted(KeyboardInterrupt):
    """A signal asked the run to leave.

    Attributes:
        number: Of the signal.
        resume: Command that goes on; None if nothing was saved yet.
    """

    def __init__(self, number: int, resume: str | None = None) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number
        self.resume = resume


class RunState:
    """The state of one run on disk. Made by `open_run`; every process of a launch has one, the main process writes."""

    def __init__(self, settings: PruneConfig, paths: RunPaths, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.paths = paths
        self.settings = settings
        self.fingerprint = ""
        self.earlier: list[dict[str, Any]] = []  # searches that have ended, of a run in stages
        self._signal: int | None = None
        self._deferred = False
        self._saved = time.monotonic()

    @property
    def resume_command(self) -> str | None:
        """What goes on with the run, once something was saved."""
        return f"mabprune prune --config {self.paths.config} --resume" if self.paths.search.exists() else None

    def begin(self, model: nn.Module, batches: Sequence[dict[str, torch.Tensor]]) -> None:
        """Notes what the run is about, for searches of other models or data are not taken up; starts its trackers."""
        self.fingerprint = fingerprint(model, batches)
        if self.accelerator.log_with:
            self.accelerator.init_trackers("hf_mabprune", {"config": self.settings.to_yaml()})

    def restore(self, search: Resumable) -> bool:
        """Takes a saved search up, if there is one; after `ended`, the one that followed.

        Raises:
            ValueError: If the state is of another version, or of another model or other data.
        """
        path = self.paths.search
        saved = on_main(self.accelerator, lambda: path.read_bytes() if path.exists() else None)
        if saved is None:
            return False
        state = unpack(saved, path)
        if state["fingerprint"] != self.fingerprint:
            raise ValueError(
                f"{path} was saved with another model or other data; put those back, or start anew with "
                "output.overwrite: true and without --resume"
            )
        searches = [*state["earlier"], state["search"]]
        if len(self.earlier) >= len(searches):
            return False
        search.load_state_dict(searches[len(self.earlier)])
        return True

    def ended(self, search: Resumable) -> None:
        """What is kept from here on is of the next search."""
        self.earlier.append(search.state_dict())

    def keep(self, search: Resumable, round_ended: bool) -> None:
        """Called after every step of a search: saves it when due, and leaves if a signal came.

        Raises:
            Interrupted: In all processes, once the search is saved.
        """
        left = self._agreed_signal()
        if round_ended or left or time.monotonic() - self._saved > SAVE_EVERY:
            state = {"fingerprint": self.fingerprint, "earlier": self.earlier, "search": search.state_dict()}
            on_main(self.accelerator, lambda: write_atomically(self.paths.search, pack(state)))
            self._saved = time.monotonic()
        if left:
            raise Interrupted(left, self.resume_command)

    @contextmanager
    def deferred_signals(self) -> Iterator[None]:
        """Signals wait for `keep` while the context is open; a second one does not."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def saved(self) -> bytes | None:
        """The search as it was saved last, on the main process."""
        path = self.paths.search
        return path.read_bytes() if self.accelerator.is_main_process and path.exists() else None

    def finish(self, figures: Sequence[Mapping[str, float]] = ()) -> None:
        """Clears up once the output is in place, when nothing is left to resume.

        Args:
            figures: Name -> number for each size, for the trackers.
        """
        for numbers in figures:
            self.accelerator.log(dict(numbers))
        for tracker in self.accelerator.trackers:
            tracker.finish()
        if self.accelerator.is_main_process:
            self.discard()

    def discard(self) -> None:
        """Removes what this run has put into its folder, and the folder where nothing else is in it."""
        remove_files(self.paths.state, self.paths.names())

    def _agreed_signal(self) -> int:
        """The number of a signal that any process got, 0 if none did."""
        own = torch.tensor(self._signal or 0, device=self.accelerator.device)
        if self.accelerator.num_processes == 1:
            return int(own)
        return int(self.accelerator.gather(own.reshape(1)).max())

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self._deferred or self._signal is not None:
            raise Interrupted(number, self.resume_command)
        self._signal = number


@contextmanager
def open_run(
    settings: PruneConfig, paths: RunPaths, accelerator: Accelerator, resume: bool = False
) -> Iterator[RunState]:
    """Takes the lock of an output folder, clears what a killed run left, and listens to signals.

    Args:
        settings: Run settings.
        paths: Files of the run.
        accelerator: Processes of the launch, all of which call this.
        resume: Whether an interrupted run goes on.

    Raises:
        FileExistsError: If another run holds the lock, the output is there already, or an interrupted run is.
        ValueError: If the interrupted run has other settings.
    """
    run = RunState(settings, paths, accelerator)
    lock = FileLock(paths.lock, timeout=0)
    on_main(accelerator, lambda: _enter(run, lock, resume))
    previous = _listen(run)
    try:
        yield run
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        if accelerator.is_main_process:
            if not paths.search.exists():
                run.discard()
            lock.release()


def check_free(
    settings: PruneConfig, paths: RunPaths, resume: bool = False, protected: Sequence[Protected] = ()
) -> None:
    """Refuses an output folder that is taken, without touching it.

    Args:
        settings: Run settings.
        paths: Files of the run.
        resume: Whether an interrupted run goes on.
        protected: What must survive, beside what the settings name.

    Raises:
        FileExistsError: If the output is there already, or an interrupted run is, and nothing says to go over it; or
            if something else would be lost.
    """
    sources = [*protected_by(settings, paths.logs), *protected]
    check_output_dir(settings.output.dir, settings.output.overwrite, sources)
    if paths.search.exists() and not resume and not settings.output.overwrite:
        raise FileExistsError(
            f"{paths.state} holds an interrupted run: go on with --resume, or start anew with output.overwrite: true"
        )


def is_finished(settings: PruneConfig, paths: RunPaths) -> bool:
    """Tells whether the output folder holds what a run with these settings writes."""
    if settings.output.overwrite and paths.search.exists():
        return False
    written = paths.written
    return written.is_file() and not differences(yaml.safe_load(written.read_text()), settings.model_dump())


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """The parts of two configs that differ, apart from the output."""
    keys = {*one, *other} - {"output"}
    return sorted(f"{key}.{name}" if name else key for key in keys for name in _names(one.get(key), other.get(key)))


def _enter(run: RunState, lock: FileLock, resume: bool) -> None:
    """On the main process: lock, check, clear up, write the config down."""
    paths = run.paths
    refuse_other_files(paths.state, paths.names())
    paths.state.mkdir(parents=True, exist_ok=True)
    try:
        lock.acquire()
    except Timeout:
        raise FileExistsError(
            f"another run is writing to {run.settings.output.dir} (it holds {paths.lock}): wait for it, or "
            "choose another output.dir"
        ) from None
    try:
        clear_leftovers(run.settings.output.dir)
        check_free(run.settings, paths, resume)
        if not resume:
            paths.search.unlink(missing_ok=True)
        elif paths.search.exists() and paths.config.exists():
            changed = differences(yaml.safe_load(paths.config.read_text()), run.settings.model_dump())
            if changed:
                raise ValueError(
                    f"the interrupted run in {paths.state} had other settings: {', '.join(changed)}; go on with its "
                    f"own, --config {paths.config}, or start anew without --resume and with output.overwrite: true"
                )
        write_atomically(paths.config, run.settings.to_yaml().encode())
    except BaseException:
        if not paths.search.exists():
            run.discard()
        lock.release()
        raise


def _listen(run: RunState) -> dict[int, Any]:
    """Takes over SIGINT and SIGTERM; outside the main thread signals stay as they are."""
    previous: dict[int, Any] = {}
    with suppress(ValueError):
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, run._handle)
    return previous


def _names(one: Any, other: Any) -> list[str]:
    """Names under which two parts differ; an empty one if they are no mappings."""
    if not isinstance(one, dict) or not isinstance(other, dict):
        return [] if one == other else [""]
    return [name for name in {*one, *other} if one.get(name) != other.get(name)]
