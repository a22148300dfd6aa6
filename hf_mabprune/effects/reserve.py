"""The memory that a run keeps to spare itself work: one limit that all caches and statistics share.

Half of the limit is for what is kept (outputs of the dense model, recordings, stand-ins, moments, refits), the other
half is room for statistics under way, which are taken of as many sites at a time as fit into it. What is kept and does
not fit lies in temporary files that are mapped into memory, so that the system may drop any part of it and read it
again. No result depends on the limit.
"""

import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from hf_mabprune.checkpoints.offload import mapped

LIMIT = 2**32  # bytes, where nobody says how many
DISK = 2**37  # bytes of temporary files, where half of the disk stays free

Item = TypeVar("Item")


@dataclass
class Reserve:
    """Counts what is kept in memory, and says where that has to end.

    Attributes:
        limit: Bytes, half of them for what is kept.
        disk: Bytes of temporary files that may still be made.
        taken: Bytes that are kept in memory.
    """

    limit: int = LIMIT
    disk: int = DISK
    taken: int = 0

    @property
    def room(self) -> int:
        """Bytes for statistics under way."""
        return self.limit // 2

    def take(self, size: int) -> bool:
        """Takes so many bytes for something that is kept; False where they are not there."""
        fits = self.taken + size <= self.limit - self.room
        self.taken += size if fits else 0
        return fits

    def give(self, size: int) -> None:
        """Gives back what was taken."""
        self.taken -= size

    def take_for(self, holder: object, size: int) -> bool:
        """Takes bytes that an object holds, until the object is no more; False where they are not there."""
        if taken := self.take(size):
            weakref.finalize(holder, self.give, size)
        return taken

    def kept(self, tensor: torch.Tensor) -> torch.Tensor:
        """Gives a tensor that is to be kept: itself where there is memory, else its copy in a temporary file.

        Where there is no disk either, it stays in memory beyond the limit. A copy is on the CPU; do not change it.
        """
        if self.take_for(tensor, tensor.nbytes):
            return tensor
        stored = self.stored(tensor)
        return tensor if stored is None else stored

    def stored(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """Copies a tensor into a temporary file that goes with it; None where the disk has no room to spare."""
        size = tensor.nbytes
        if not 0 < size <= self.disk or size > shutil.disk_usage(tempfile.gettempdir()).free // 2:
            return None
        try:
            copy = mapped(tensor)
        except OSError:  # the disk filled up meanwhile
            return None
        self.disk -= size
        weakref.finalize(copy, self._free, size)
        return copy

    def _free(self, size: int) -> None:
        self.disk += size

    def groups(self, items: Sequence[Item], size: Callable[[Item], int]) -> Iterator[list[Item]]:
        """Deals neighbours out in groups that there is room for, at least one item each.

        Args:
            size: Bytes of an item.
        """
        group: list[Item] = []
        filled = 0
        for item in items:
            if group and filled + size(item) > self.room:
                yield group
                group, filled = [], 0
            group.append(item)
            filled += size(item)
        if group:
            yield group
