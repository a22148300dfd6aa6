"""Checksums of a finished folder, in the format of sha256sum: what changed since it was written is found out.

They guard against accidents and against whoever can change a file but not the list: `sha256sum -c` reads it, too.
"""

import hashlib
import os
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from hf_mabprune.progress import over
from hf_mabprune.runtime.files import sha256

LINE = re.compile(r"(?P<digest>[0-9a-f]{64})  (?P<name>.+)")
MOST_BYTES = 2**24  # of a list of checksums
NEW = "is not in the list"


def write(root: Path, place: Path, known: Mapping[str, str] | None = None) -> dict[str, str]:
    """Lists the checksums of every file below a folder but the list itself and hidden files.

    Args:
        root: Folder.
        place: File of the list, below the folder.
        known: Name -> checksum of files that need not be read for it.

    Returns:
        Name below the folder -> checksum, with that of the list.
    """
    own = place.relative_to(root).as_posix()
    digests = {name: (known or {}).get(name) or sha256(path) for name, path in visible_files(root) if name != own}
    text = as_text(digests)
    place.write_text(text)
    return {**digests, own: hashlib.sha256(text.encode()).hexdigest()}


def as_text(digests: Mapping[str, str]) -> str:
    """Gives the text of a list: name -> checksum, as `sha256sum` prints them."""
    return "".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items()))


def faults(root: Path, place: Path) -> list[str]:
    """Compares a folder with its list of checksums.

    Args:
        root: Folder.
        place: File of the list.

    Returns:
        One line for each file that is changed, missing, new or no plain file, by name; none where all is as it was.

    Raises:
        ValueError: If there is no list, or it is none.
    """
    listed, own = read(root, place), place.relative_to(root).as_posix()
    there = {name: path for name, path in visible_files(root) if name != own}
    found = [(name, "is missing") for name in listed.keys() - there.keys()]
    found += [(name, NEW) for name in there.keys() - listed.keys()]
    for name in over(listed.keys() & there.keys(), "checksums", "files"):
        if fault := fault_of(there[name], listed[name]):
            found.append((name, fault))
    return [f"{name} {fault}" for name, fault in sorted(found)]


def fault_of(path: Path, digest: str) -> str:
    """Says what is wrong with a file that should have a checksum; nothing where it has."""
    if not stat.S_ISREG(path.lstat().st_mode):
        return "is no plain file"
    return "" if sha256(path) == digest else "has changed"


def read(root: Path, place: Path) -> dict[str, str]:
    """Reads a list of checksums: name below the folder -> checksum.

    Raises:
        ValueError: If there is no list, or it is none.
    """
    name = place.relative_to(root)
    if not (place.is_file() and stat.S_ISREG(place.lstat().st_mode)):
        raise ValueError(f"{root} has no {name}, so it cannot be checked: make the run again")
    if place.stat().st_size > MOST_BYTES:
        raise ValueError(f"{place} is no list of checksums: it has {place.stat().st_size:,} bytes")
    digests: dict[str, str] = {}
    for number, line in enumerate(place.read_bytes().decode(errors="replace").splitlines(), start=1):
        match = LINE.fullmatch(line)
        if not match or match["name"] in digests or not _is_inside(match["name"]):
            raise ValueError(f"{place} is no list of checksums: line {number} is {line[:80]!r}")
        digests[match["name"]] = match["digest"]
    return digests


def visible_files(root: Path) -> Iterator[tuple[str, Path]]:
    """Goes through everything below a folder that is no folder: links, and what is no plain file, included; without
    hidden files and what lies in hidden folders.

    Returns:
        Iterator over names below the folder, and paths.
    """
    for place, folders, names in os.walk(root):
        links = [name for name in folders if os.path.islink(os.path.join(place, name))]
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in links)
        for name in sorted(name for name in [*names, *links] if not name.startswith(".")):
            path = Path(place, name)
            yield path.relative_to(root).as_posix(), path


def _is_inside(name: str) -> bool:
    """Whether a name leads to nothing outside the folder."""
    return not (name.startswith("/") or ".." in Path(name).parts)
