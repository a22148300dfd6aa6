"""A training on disk: how far it has come, so that a run that was stopped goes on from there.

Its file is named by what it began from, so that a training of other weights, data or settings never takes it up.
"""

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch

from hf_mabprune.errors import OutsideError, outside
from hf_mabprune.recovery.course import TrainingState
from hf_mabprune.runtime import signals
from hf_mabprune.runtime.files import write_atomically
from hf_mabprune.runtime.hashes import sha256_of_tensors
from hf_mabprune.runtime.processes import on_main
from hf_mabprune.runtime.saved import REMEDY, SAVE_EVERY
from hf_mabprune.states import Entry, Items, Text, Values, read_state

if TYPE_CHECKING:
    from hf_mabprune.runtime.resume import RunState

FORMAT = "1"
SHARE = 20.0  # of what the last save took: no less time lies between two
NUMBERS: Mapping[str, Entry] = {
    "step": Values(int, (), low=0),
    "seconds": Values(float, (), low=0),
    "tokens": Items(Values(int, (), low=0)),
    "losses": Items(Values(float, ())),
    "scale": Items(Values(float, (), low=0)),
    "checksum": Text(),
}


class KeptTraining:
    """Keeps one training of a run, see `recovery.course.Keeper`. Every process of a launch has one, the main process
    writes.

    Args:
        run: The run.
        start: Hash of what the training begins with.
    """

    def __init__(self, run: "RunState", start: str) -> None:
        self.run = run
        name = hashlib.sha256(f"{run.fingerprint} {start}".encode()).hexdigest()
        self.path = run.paths.training(name)
        self._saved, self._took = time.monotonic(), 0.0

    def read(self) -> TrainingState | None:
        """See `Keeper.read`."""
        return on_main(self.run.accelerator, lambda: read_training(self.path) if self.path.exists() else None)

    def open(self) -> AbstractContextManager[None]:
        """See `Keeper.open`."""
        return signals.deferred()

    def keep(self, state: Callable[[], TrainingState], ended: bool) -> None:
        """See `Keeper.keep`: saves when due, or when all has ended, and leaves with `Interrupted` if a signal came."""
        left = self.run.agreed(signals.pending())
        due = time.monotonic() - self._saved > max(SAVE_EVERY, SHARE * self._took)
        if self.run.agreed(ended or due or bool(left)):
            start, found = time.monotonic(), state()
            on_main(self.run.accelerator, lambda: write_training(self.path, found))
            self._saved = time.monotonic()
            self._took = self._saved - start
        if left:
            raise signals.Interrupted(left, self.run.resume_command)


def write_training(path: Path, state: TrainingState) -> None:
    """Writes a training into one safetensors file, whole or not at all."""
    tensors = {name: tensor.detach().contiguous() for name, tensor in state.tensors.items()}
    numbers = {name: value for name, value in vars(state).items() if name != "tensors"}
    metadata = {"format": FORMAT, "numbers": json.dumps({**numbers, "checksum": _checksum(numbers, tensors)})}
    write_atomically(path, lambda work: safetensors.torch.save_file(tensors, work, metadata))


def read_training(path: Path) -> TrainingState:
    """Reads what `write_training` has written.

    Raises:
        ValueError: If the file is damaged or no such file.
    """
    with outside(f"{path} is no saved training", REMEDY):
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
        if metadata["format"] != FORMAT:
            raise ValueError(f"it has format {metadata['format']:.20}, this version of hf_mabprune reads {FORMAT}")
        numbers = read_state("a training", json.loads(metadata["numbers"]), NUMBERS, {})
        if numbers.pop("checksum") != _checksum(numbers, tensors):
            raise OutsideError(f"{path} is damaged: its checksum does not hold; {REMEDY}")
    return TrainingState(**numbers, tensors=tensors)


def _checksum(numbers: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> str:
    """Hashes a training."""
    text = json.dumps(numbers, sort_keys=True)
    return hashlib.sha256(f"{text} {sha256_of_tensors(tensors)}".encode()).hexdigest()
