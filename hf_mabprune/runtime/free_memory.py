"""How much memory is free for a run: of the machine, or of what its control group leaves of it."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import torch

from hf_mabprune.effects.reserve import LIMIT, Reserve

SHARE = 4  # a run that is not told takes one part of so many
GROUPS = Path("/sys/fs/cgroup")


def make_reserve(gibibytes: float | None, device: torch.device) -> Reserve:
    """Makes the reserve of a run.

    Args:
        gibibytes: Its limit; None takes a quarter of what is free, at most 4 GiB.
        device: Device of the model, which caches lie on.
    """
    if gibibytes is not None:
        return Reserve(round(gibibytes * 2**30))
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_memory()
    return Reserve(min(LIMIT, free // SHARE))


def free_memory(groups: Path = GROUPS) -> int:
    """Gives the bytes that the machine has left, or the control groups of this process, where they allow less.

    Args:
        groups: Where control groups are mounted.
    """
    return min([psutil.virtual_memory().available, *_left_in_groups(groups)])


def _left_in_groups(groups: Path) -> Iterator[int]:
    """Gives what each control group of this process leaves that has a limit; files that can be read again are free."""
    with suppress(OSError):
        own = Path("/proc/self/cgroup").read_text().rpartition(":")[2].strip().lstrip("/")
        for folder in (groups / own, *(groups / own).parents):
            with suppress(OSError, ValueError):  # no limit, or none that is said
                limit, used = (int((folder / name).read_text()) for name in ("memory.max", "memory.current"))
                entries = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                yield max(0, limit - used + int(entries.get("inactive_file", 0)))
