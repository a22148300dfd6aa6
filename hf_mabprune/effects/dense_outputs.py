"""What the dense model says on the batches of a run: asked once, and read from the record by every stage after that.

Pulls, refits and the report all compare with the dense model on the same batches. With its outputs on record no stage
after the search has to run it again, or to hold it beside the smaller one.
"""

import shutil
import tempfile
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from hf_mabprune.effects.memory import Sizes
from hf_mabprune.tasks.readout import Readout

MEMORY = 2**31  # bytes that are kept in memory
DISK = 2**34  # bytes that are kept in temporary files beyond that, where half of the disk stays free
COPIES = 8  # of a batch's logits, in wider precision some of them, while divergences are formed
WHOLE = -1  # in the place of the number of a part: the batch as it is

Key = Hashable  # (split, number of the batch, number of its part)


@dataclass(frozen=True)
class Recorded:
    """What the dense model says on one batch.

    Attributes:
        distribution: [B, P, C], of the outputs, in the precision that divergences are formed in.
    """

    readout: Readout
    distribution: torch.Tensor


@dataclass
class DenseOutputs:
    """Keeps readouts of the dense model by the batch that they are of.

    What does not fit into memory goes to temporary files, and what fits nowhere is computed again when it is asked
    for. Distributions, which divergences are measured from, are kept in memory alone.

    Args:
        memory: Bytes that may be kept in memory.
        disk: Bytes that may be kept in temporary files.
    """

    memory: int = MEMORY
    disk: int = DISK
    _readouts: dict[Key, Readout] = field(default_factory=dict, repr=False)
    _distributions: dict[Key, torch.Tensor] = field(default_factory=dict, repr=False)
    _files: dict[Key, tuple[Path, Readout]] = field(default_factory=dict, repr=False)
    _folder: "tempfile.TemporaryDirectory[str] | None" = field(default=None, repr=False)

    def readout(self, key: Key, make: Callable[[], Readout]) -> Readout:
        """Gives what is on record under a key, else what `make` gives, which is recorded then.

        Nothing that is recorded holds on to the pass that made it.
        """
        if key in self._readouts:
            return self._readouts[key]
        if key in self._files:
            path, shell = self._files[key]
            return replace(shell, outputs=load_file(path, device=str(shell.targets.device))["outputs"])
        with torch.inference_mode():
            made = make()
        if made.outputs.nbytes <= self.memory:
            self.memory -= made.outputs.nbytes
            self._readouts[key] = made
        elif made.outputs.nbytes <= self.disk:
            self._write(key, made)
        return made

    def recorded(self, key: Key, make: Callable[[], Readout]) -> Recorded:
        """Gives the same with the distributions of the outputs, which are kept beside it."""
        readout = self.readout(key, make)
        if key in self._distributions:
            return Recorded(readout, self._distributions[key])
        with torch.inference_mode():
            distribution = readout.distribution()
        if distribution.nbytes <= self.memory:
            self.memory -= distribution.nbytes
            self._distributions[key] = distribution
        return Recorded(readout, distribution)

    def _write(self, key: Key, made: Readout) -> None:
        """Puts logits into a temporary file, where the disk has room to spare."""
        self._folder = self._folder or tempfile.TemporaryDirectory(prefix="dense-outputs-")
        place = Path(self._folder.name)
        if shutil.disk_usage(place).free < 2 * made.outputs.nbytes + self.disk // 2:
            self.disk = 0
            return
        path = place / f"{len(self._files)}.safetensors"
        save_file({"outputs": made.outputs.contiguous()}, path)
        self.disk -= made.outputs.nbytes
        self._files[key] = path, replace(made, outputs=made.outputs[:0])


def memory(sizes: Sizes) -> int:
    """Estimates the bytes that outputs take: a few copies of a batch's, and the record of all, as long as it fits."""
    logits = sizes.item * sizes.vocabulary
    return COPIES * logits * sizes.batch_tokens + min(MEMORY, 2 * logits * sizes.tokens)
