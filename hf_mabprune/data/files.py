"""Files that splits are read from: told apart by what they are on disk, and known again after a change."""

import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from itertools import combinations

from hf_mabprune.errors import without_credentials

Files = Mapping[str, Sequence[str]]  # split -> absolute paths, or addresses


def state_of(files: Files) -> str:
    """Gives a short text that changes whenever a local file does, in place and with its old date too; empty without
    local files.

    The cache of `datasets` looks at the date alone.
    """
    states = [
        (name, found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)
        for name in sorted({name for names in files.values() for name in names})
        if (found := _stat(name))
    ]
    return blake2b(repr(states).encode(), digest_size=16).hexdigest() if states else ""


def refuse_unreadable(files: Files, never_empty: bool) -> None:
    """Refuses what is no plain file, which may never end, and files without content.

    Args:
        files: Split -> files.
        never_empty: Whether a file of the kind holds at least a byte.

    Raises:
        ValueError: For the first such file; the message names its split.
    """
    for split, names in files.items():
        for name in names:
            found = _stat(name)
            if found and not stat.S_ISREG(found.st_mode):
                raise ValueError(f"'{name}' for split '{split}' must be a plain file, not a folder, pipe or device")
            if found and never_empty and not found.st_size:
                raise ValueError(f"'{name}' for split '{split}' is empty, 0 bytes; leave it out, or save it again")


def refuse_shared_files(files: Files, read_by: Mapping[str, Iterable[str]]) -> None:
    """Refuses a file that two purposes read under two names: rows of it would be in both.

    The same file is told by what it is on disk, so links of either kind, other spellings and patterns that overlap are
    seen.

    Args:
        files: Split -> files.
        read_by: Purpose -> splits that it reads.

    Raises:
        ValueError: With the file and both purposes.
    """
    for (one, first), (other, second) in combinations(read_by.items(), 2):
        for split in first:
            for other_split in second:
                if split == other_split:  # whose slices are compared by row
                    continue
                seen = {_identity(name): name for name in files.get(split, ())}
                for name in files.get(other_split, ()):
                    if earlier := seen.get(_identity(name)):
                        also = "" if earlier == name else f" (the same as '{earlier}')"
                        message = (
                            f"splits must not overlap, but {one} reads '{split}' and {other} reads '{other_split}', "
                            f"both of '{name}'{also}; name the file for one split, and slice that apart, e.g. "
                            f"{split}[2000:] and {split}[:2000]"
                        )
                        raise ValueError(without_credentials(message))


def _identity(name: str) -> object:
    """Gives what two names of one file have in common."""
    found = _stat(name)
    return (found.st_dev, found.st_ino) if found else name


def _stat(name: str) -> os.stat_result | None:
    """Looks a local file up; None for an address, or what is inside an archive."""
    try:
        return os.stat(name)
    except (OSError, ValueError):
        return None
