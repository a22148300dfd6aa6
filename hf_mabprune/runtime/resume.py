"""A run that can be stopped and taken up again: its lock, its saved search, and the signals that ask it to leave.

While a run goes on, the folder `DIR.state` lies beside its output folder DIR, with the lock, the resolved config and
the state of the search. It is written anew after every round, and goes when the output is in place.
"""

import hashlib
import json
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import safetensors.numpy
import torch
import yaml
from accelerate import Accelerator
from filelock import FileLock, Timeout
from safetensors import SafetensorError
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
from hf_mabprune.search.loop import Search

FORMAT = "3"
FILE = "search_state.safetensors"
LOCK, CONFIG = "lock", "config.yaml"
NAMES = (FILE, f"{FILE}{PARTIAL}", CONFIG, f"{CONFIG}{PARTIAL}", LOCK)  # of everything in the folder of a state
SAVE_EVERY = 60.0  # seconds between saves within a round
SAMPLE = 256  # numbers of each tensor that the fingerprint of a model reads


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

    def __init__(self, settings: PruneConfig, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.folder = state_folder(settings)
        self.path = self.folder / FILE
        self.settings = settings
        self.fingerprint = ""
        self.earlier: list[dict[str, Any]] = []  # searches that have ended, of a run in stages
        self._signal: int | None = None
        self._deferred = False
        self._saved = time.monotonic()

    @property
    def resume_command(self) -> str | None:
        """What goes on with the run, once something was saved."""
        return f"mabprune prune --config {self.folder / CONFIG} --resume" if self.path.exists() else None

    def identify(self, model: nn.Module, batches: Sequence[dict[str, torch.Tensor]]) -> None:
        """What the run is about: searches of other models or data are not taken up."""
        self.fingerprint = fingerprint(model, batches)

    def restore(self, search: Search) -> bool:
        """Takes a saved search up, if there is one; after `ended`, the one that followed.

        Raises:
            ValueError: If the state is of another version, or of another model or other data.
        """
        saved = on_main(self.accelerator, lambda: self.path.read_bytes() if self.path.exists() else None)
        if saved is None:
            return False
        state = unpack(saved, self.path)
        if state["fingerprint"] != self.fingerprint:
            raise ValueError(
                f"{self.path} was saved with another model or other data; put those back, or start anew with "
                "output.overwrite: true and without --resume"
            )
        searches = [*state["earlier"], state["search"]]
        if len(self.earlier) >= len(searches):
            return False
        search.load_state_dict(searches[len(self.earlier)])
        return True

    def ended(self, search: Search) -> None:
        """What is kept from here on is of the next search."""
        self.earlier.append(search.state_dict())

    def keep(self, search: Search, round_ended: bool) -> None:
        """Called after every step of a search: saves it when due, and leaves if a signal came.

        Raises:
            Interrupted: In all processes, once the search is saved.
        """
        left = self._agreed_signal()
        if round_ended or left or time.monotonic() - self._saved > SAVE_EVERY:
            state = {"fingerprint": self.fingerprint, "earlier": self.earlier, "search": search.state_dict()}
            on_main(self.accelerator, lambda: write_atomically(self.path, pack(state)))
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
        return self.path.read_bytes() if self.accelerator.is_main_process and self.path.exists() else None

    def finish(self) -> None:
        """The output is in place: nothing is left to resume."""
        if self.accelerator.is_main_process:
            self.discard()

    def discard(self) -> None:
        """Removes what this run has put into its folder, and the folder where nothing else is in it."""
        remove_files(self.folder, NAMES)

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


def state_folder(settings: PruneConfig) -> Path:
    """Where a run keeps its state while it goes on."""
    return Path(f"{settings.output.dir.rstrip('/')}.state")


@contextmanager
def open_run(settings: PruneConfig, accelerator: Accelerator, resume: bool = False) -> Iterator[RunState]:
    """Takes the lock of an output folder, clears what a killed run left, and listens to signals.

    Raises:
        FileExistsError: If another run holds the lock, the output is there already, or an interrupted run is.
        ValueError: If the interrupted run has other settings.
    """
    run = RunState(settings, accelerator)
    lock = FileLock(run.folder / LOCK, timeout=0)
    on_main(accelerator, lambda: _enter(run, lock, resume))
    previous = _listen(run)
    try:
        yield run
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        if accelerator.is_main_process:
            if not run.path.exists():
                run.discard()
            lock.release()


def check_free(settings: PruneConfig, resume: bool = False, protected: Sequence[Protected] = ()) -> None:
    """Refuses an output folder that is taken, without touching it.

    Args:
        settings: Run settings.
        resume: Whether an interrupted run goes on.
        protected: What must survive, beside what the settings name.

    Raises:
        FileExistsError: If the output is there already, or an interrupted run is, and nothing says to go over it; or
            if something else would be lost.
    """
    check_output_dir(settings.output.dir, settings.output.overwrite, [*protected_by(settings), *protected])
    folder = state_folder(settings)
    if (folder / FILE).exists() and not resume and not settings.output.overwrite:
        raise FileExistsError(
            f"{folder} holds an interrupted run: go on with --resume, or start anew with output.overwrite: true"
        )


def is_finished(settings: PruneConfig) -> bool:
    """Whether the output folder holds what a run with these settings writes."""
    path = Path(settings.output.dir) / "mabprune" / "config.yaml"
    if settings.output.overwrite and (state_folder(settings) / FILE).exists():
        return False
    return path.is_file() and not differences(yaml.safe_load(path.read_text()), settings.model_dump())


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """The parts of two configs that differ, apart from the output."""
    keys = {*one, *other} - {"output"}
    return sorted(
        f"{key}.{name}" if name else key
        for key in keys
        for name in _names(one.get(key), other.get(key))
    )


def fingerprint(model: nn.Module, batches: Sequence[dict[str, torch.Tensor]]) -> str:
    """Tells models and calibration data apart: a hash of all tokens and of a sample of every tensor."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        flat = tensor.detach().flatten()
        step = max(1, len(flat) // SAMPLE)
        digest.update(f"{name} {list(tensor.shape)}".encode())
        digest.update(flat[::step].float().cpu().numpy().tobytes())
    for batch in batches:
        for name, tensor in sorted(batch.items()):
            digest.update(name.encode())
            digest.update(tensor.cpu().numpy().tobytes())
    return digest.hexdigest()


def pack(state: dict[str, Any]) -> bytes:
    """Nested dicts of arrays and JSON values as one safetensors file."""
    arrays: dict[str, np.ndarray] = {}

    def strip(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            arrays[str(len(arrays))] = np.ascontiguousarray(value)
            return {"array": str(len(arrays) - 1)}
        if isinstance(value, np.generic):
            return value.item()
        if isinstance(value, dict):
            return {name: strip(part) for name, part in value.items()}
        return [strip(part) for part in value] if isinstance(value, list | tuple) else value

    tree = json.dumps(strip(state))
    return safetensors.numpy.save(arrays, metadata={"format": FORMAT, "tree": tree})


def unpack(saved: bytes, path: Path) -> dict[str, Any]:
    """What `pack` packed.

    Raises:
        ValueError: If the file is broken, or of another version.
    """
    try:
        arrays = safetensors.numpy.load(saved)
        length = int.from_bytes(saved[:8], "little")
        metadata = json.loads(saved[8 : 8 + length])["__metadata__"]
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is no saved search ({error}); start anew with output.overwrite: true") from None
    if metadata.get("format") != FORMAT:
        raise ValueError(
            f"{path} has format {metadata.get('format')}, this version of hf_mabprune reads {FORMAT}: resume with the "
            "version that saved it, or start anew with output.overwrite: true"
        )

    def fill(value: Any) -> Any:
        if isinstance(value, dict):
            return arrays[value["array"]] if set(value) == {"array"} else {k: fill(v) for k, v in value.items()}
        return [fill(part) for part in value] if isinstance(value, list) else value

    return dict(fill(json.loads(metadata["tree"])))


def _enter(run: RunState, lock: FileLock, resume: bool) -> None:
    """On the main process: lock, check, clear up, write the config down."""
    refuse_other_files(run.folder, NAMES)
    run.folder.mkdir(parents=True, exist_ok=True)
    try:
        lock.acquire()
    except Timeout:
        raise FileExistsError(
            f"another run is writing to {run.settings.output.dir} (it holds {run.folder / LOCK}): wait for it, or "
            "choose another output.dir"
        ) from None
    try:
        clear_leftovers(run.settings.output.dir)
        check_free(run.settings, resume)
        written = run.folder / CONFIG
        if not resume:
            run.path.unlink(missing_ok=True)
        elif run.path.exists() and written.exists():
            changed = differences(yaml.safe_load(written.read_text()), run.settings.model_dump())
            if changed:
                raise ValueError(
                    f"the interrupted run in {run.folder} had other settings: {', '.join(changed)}; go on with its "
                    f"own, --config {written}, or start anew without --resume and with output.overwrite: true"
                )
        write_atomically(written, run.settings.to_yaml().encode())
    except BaseException:
        if not run.path.exists():
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
