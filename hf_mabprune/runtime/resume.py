"""A run that can be stopped and taken up again: its lock, its saved search, and what is left to do.

While a run goes on, a folder lies beside its output folder, with the lock, the resolved config and the state of the
search. It is written anew after every round, and goes when the output is in place, and published where it shall be.
"""

import hashlib
import json
import shlex
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from filelock import FileLock, Timeout
from torch import nn

from hf_mabprune.config import PruneConfig, read_yaml
from hf_mabprune.errors import in_words, outside
from hf_mabprune.runtime import signals
from hf_mabprune.runtime.files import (
    claim,
    clear_leftovers,
    damage,
    refuse_other_files,
    rehearse,
    remove_files,
    write_atomically,
)
from hf_mabprune.runtime.hashes import sha256_of_weights
from hf_mabprune.runtime.places import Protected, check_output_dir, protected_by
from hf_mabprune.runtime.processes import agree, on_main
from hf_mabprune.runtime.run_paths import RunPaths
from hf_mabprune.runtime.saved import REMEDY, SAVE_EVERY, fingerprint, pack, read_searches
from hf_mabprune.runtime.trainings import KeptTraining


class Resumable(Protocol):
    """What can be written down and taken up again: a search."""

    @property
    def ended(self) -> bool:
        """Whether there is nothing left to do."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that `load_state_dict` needs: arrays, numbers, and plain dicts and lists of them."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a state, as if there had been no interruption."""


class RunState:
    """The state of one run on disk. Made by `open_run`; every process of a launch has one, the main process writes."""

    def __init__(self, settings: PruneConfig, paths: RunPaths, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.paths = paths
        self.settings = settings
        self.fingerprint = ""
        self.earlier: list[dict[str, Any]] = []  # searches that have ended, of a run in stages
        self._saved = time.monotonic()

    @property
    def resume_command(self) -> str | None:
        """What goes on with the run, once something was saved."""
        if not self.paths.unfinished:
            return None
        return f"mabprune prune --config {shlex.quote(str(self.paths.config))} --resume"

    def begin(self, model: nn.Module, batches: Iterable[Mapping[str, torch.Tensor]]) -> None:
        """Notes what the run is about, for searches of another run are not taken up; starts its trackers.

        Raises:
            ValueError: If the processes of the launch work on different models or data.
        """
        about = fingerprint(model, batches)
        agree(self.accelerator, "model and data", {"the weights or the tokens": about})
        settings = {name: part for name, part in self.settings.stored().items() if name != "output"}
        self.fingerprint = hashlib.sha256(f"{about} {json.dumps(settings, sort_keys=True)}".encode()).hexdigest()
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
        searches = read_searches(saved, path, self.fingerprint, self.settings.stages)
        number = len(self.earlier)
        if number >= len(searches):
            return False
        with outside(f"{path} is no saved search of this run", REMEDY):
            search.load_state_dict(searches[number])
            if number + 1 < len(searches) and not search.ended:
                raise ValueError("a search has begun before the one before it has ended")
        return True

    def ended(self, search: Resumable) -> None:
        """What is kept from here on is of the next search."""
        self.earlier.append(search.state_dict())

    def keep(self, search: Resumable, round_ended: bool) -> None:
        """Called after every step of a search: saves it when due, and leaves if a signal came.

        Raises:
            Interrupted: In all processes, once the search is saved.
        """
        left = self.agreed(signals.pending())
        if self.agreed(round_ended or bool(left) or time.monotonic() - self._saved > SAVE_EVERY):
            state = {"fingerprint": self.fingerprint, "earlier": self.earlier, "search": search.state_dict()}
            on_main(self.accelerator, lambda: write_atomically(self.paths.search, pack(state)))
            self._saved = time.monotonic()
        if left:
            raise signals.Interrupted(left, self.resume_command)

    def training(self, model: nn.Module, seed: int) -> KeptTraining:
        """Gives where the training of a model is kept that begins with these weights and this seed."""
        return KeptTraining(self, f"{sha256_of_weights(model)} {seed}")

    def saved(self) -> bytes | None:
        """The search as it was saved last, on the main process."""
        path = self.paths.search
        return path.read_bytes() if self.accelerator.is_main_process and path.exists() else None

    def publish(self, push: Callable[[], object]) -> None:
        """Publishes the output, which is in place, on the main process; the run is not over before that is done.

        Args:
            push: Function that does it.

        Raises:
            OSError: If that fails, with what to do about it; the output stays, and so does what `--resume` needs.
        """
        on_main(self.accelerator, lambda: self.paths.unpublished.touch())
        try:
            on_main(self.accelerator, push)
        except Exception as error:
            raise OSError(
                f"{in_words(error)}. The output is safe in {self.paths.output}, and only has to be pushed: mabprune "
                f"push, or {self.resume_command}"
            ) from error

    def finish(self, figures: Sequence[Mapping[str, float]] = ()) -> None:
        """Clears up once the output is in place, when nothing is left to do.

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

    def agreed(self, number: int) -> int:
        """Gives the largest number that any process has: of a signal, 0 where none came, or whether to save."""
        if self.accelerator.num_processes == 1:
            return int(number)
        return int(self.accelerator.gather(torch.tensor([int(number)], device=self.accelerator.device)).max())


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
    with signals.heeded():
        agree(accelerator, "settings", _flat(settings.stored()))
        on_main(accelerator, lambda: _enter(run, lock, resume))
        try:
            yield run
        except signals.Interrupted as stop:
            stop.resume = stop.resume or run.resume_command
            raise
        finally:
            if accelerator.is_main_process:
                if not paths.unfinished:
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
    refuse_other_files(paths.state, paths.names())
    if resume and paths.unpublished.exists():
        return
    sources = [*protected_by(settings, paths.logs), *protected]
    check_output_dir(paths.output, settings.output.overwrite, sources)
    logs, output = Path(settings.output.log_dir or paths.logs).resolve(), paths.output.resolve()
    if output == logs or output in logs.parents:
        raise ValueError(f"output.log_dir {settings.output.log_dir} must not lie in output.dir {paths.output}")
    if paths.begun and not resume and not settings.output.overwrite:
        raise FileExistsError(
            f"{paths.state} holds an interrupted run: go on with --resume, or start anew with output.overwrite: true"
        )


def is_finished(settings: PruneConfig, paths: RunPaths) -> bool:
    """Tells whether the output folder holds what a run with these settings writes, whole.

    Raises:
        ValueError: If a part of it is gone or was changed.
    """
    if (settings.output.overwrite and paths.begun) or not paths.written.is_file():
        return False
    if differences(_read_config(paths.written), settings.stored()):
        return False
    if fault := damage(paths.output):
        raise ValueError(
            f"{paths.output} is of a finished run, but {fault}: put that back, or make the run again with "
            "output.overwrite: true and without --resume"
        )
    return True


def _read_config(path: Path) -> dict[str, Any]:
    """Reads settings that a run wrote down."""
    with outside(f"{path} cannot be read", REMEDY):
        return read_yaml(path)


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """The parts of two configs that differ, apart from the output."""
    keys = {*one, *other} - {"output"}
    return sorted(f"{key}.{name}" if name else key for key in keys for name in _names(one.get(key), other.get(key)))


def _enter(run: RunState, lock: FileLock, resume: bool) -> None:
    """On the main process: lock, check, clear up, write the config down."""
    paths = run.paths
    check_free(run.settings, paths, resume)
    claim(paths.state)
    try:
        lock.acquire()
    except Timeout:
        raise FileExistsError(
            f"another run is writing to {run.settings.output.dir} (it holds {paths.lock}): wait for it, or "
            "choose another output.dir"
        ) from None
    try:
        clear_leftovers(paths.output)
        check_free(run.settings, paths, resume)
        if resume and paths.begun:
            _check_same(run.settings, paths)
        if not resume:
            for path in (paths.search, paths.unpublished, *paths.trainings()):
                path.unlink(missing_ok=True)
        if not paths.unpublished.exists():
            rehearse(paths.output)
        write_atomically(paths.config, run.settings.to_yaml().encode())
    except BaseException:
        if not paths.unfinished:
            run.discard()
        lock.release()
        raise


def _check_same(settings: PruneConfig, paths: RunPaths) -> None:
    """Raises ValueError for settings that the interrupted run did not have."""
    if not paths.config.exists():
        raise ValueError(f"{paths.state} holds a run without its settings, {paths.config.name}: {REMEDY}")
    if changed := differences(_read_config(paths.config), settings.stored()):
        raise ValueError(
            f"the interrupted run in {paths.state} had other settings: {', '.join(changed)}; go on with its "
            f"own, --config {paths.config}, or start anew without --resume and with output.overwrite: true"
        )


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Gives dotted key -> value of nested settings."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def _names(one: Any, other: Any) -> list[str]:
    """Names under which two parts differ; an empty one if they are no mappings."""
    if not isinstance(one, dict) or not isinstance(other, dict):
        return [] if one == other else [""]
    return [name for name in {*one, *other} if one.get(name) != other.get(name)]
