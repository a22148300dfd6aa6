"""Files of a run: written whole or not at all; and nothing is deleted but what a run of this package made.

An output folder bears a mark, a file that lists what the run put there, with the hash of each file. A folder is
replaced only if it is empty, or if it bears the mark and holds nothing that the mark does not list, unchanged.
"""

import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from hf_mabprune.errors import beginning

PARTIAL, OLD = ".partial", ".old"  # endings of folders that are not, or no longer, the output
OURS = "mabprune-"  # begins what follows the output's name in the names of such folders
MARK = ".mabprune-output.json"
MADE_BY = "hf_mabprune"
REMEDY = "Choose another output.dir"
LONGEST = 200  # letters of a path in a message


def refuse_strangers(folder: Path) -> None:
    """Raises FileExistsError for a folder that holds more than an earlier output, or where that was changed."""
    if stranger := _stranger_in(folder):
        raise FileExistsError(
            f"{folder} exists and holds {stranger}: nothing was touched. Choose another output.dir, or move that "
            "away yourself"
        )


def _stranger_in(folder: Path) -> str | None:
    """Says what in a folder is not as its mark has it, the first by name; where there is no mark, the first entry."""
    if not (folder / MARK).is_file():
        names = [path.name for path in folder.iterdir()]
        return f"{min(names)}, which no run of {MADE_BY} wrote" if names else None
    listed = _marked_files(folder)
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if name == MARK or is_plain_folder(path):
            continue
        if name not in listed or not is_plain_file(path):
            return f"{name}, which no run of {MADE_BY} wrote"
        if listed[name] != sha256(path):
            return f"{name}, which was changed since a run of {MADE_BY} wrote it"
    return None


def damage(folder: Path) -> str | None:
    """Says what of a finished output is gone or was changed, the first by name; None where nothing is."""
    listed = _marked_files(folder)
    gone = next((name for name in sorted(listed) if not (folder / name).is_file()), None)
    if gone or not listed:
        return f"it lacks {gone or MARK}, which the run wrote"
    changed = next((name for name, digest in sorted(listed.items()) if digest != sha256(folder / name)), None)
    return changed and f"its {changed} was changed since"


def is_plain_folder(path: Path) -> bool:
    """Tells whether something is a folder itself, and no link to one."""
    return path.is_dir() and not path.is_symlink()


def is_plain_file(path: Path) -> bool:
    """Tells whether something is a regular file itself: no link, device, fifo or socket."""
    return path.is_file() and not path.is_symlink()


def sha256(path: Path) -> str:
    """Hashes a file, a block at a time."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _read_mark(folder: Path) -> dict[str, Any]:
    """Reads a mark; nothing where it cannot be read, or is somebody else's."""
    try:
        mark = json.loads((folder / MARK).read_text())
        return mark if mark["made_by"] == MADE_BY else {}
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return {}


def _marked_files(folder: Path) -> dict[str, str]:
    """Gives the files that a mark lists, each with its hash."""
    listed = _read_mark(folder).get("files")
    return listed if isinstance(listed, dict) else {}


def _write_mark(folder: Path, **content: Any) -> None:
    (folder / MARK).write_text(json.dumps({"made_by": MADE_BY, **content}, indent=1))


def _close(folder: Path) -> None:
    """Writes down what a finished output consists of, with the permissions that its files would have anywhere else."""
    paths = sorted(folder.rglob("*"))
    files = {path.relative_to(folder).as_posix(): sha256(path) for path in paths if is_plain_file(path)}
    _write_mark(folder, files={name: digest for name, digest in files.items() if name != MARK})
    mask = os.umask(0)
    os.umask(mask)
    for path in (folder, *paths):
        if not path.is_symlink():
            path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)


@contextmanager
def atomic_folder(target: str | Path) -> Iterator[Path]:
    """Gives a temporary folder beside `target` that takes its place when the block ends well, and else vanishes.

    What it replaces must have passed `places.check_output_dir`.

    Raises:
        OSError: If the disk is full, whoever noticed it.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    work = _temporary_folder(target, PARTIAL)
    try:
        with _full_disks(target):
            yield work
        _close(work)
        if os.path.lexists(target):  # a search takes long, and people go on working
            if not is_plain_folder(target):
                raise FileExistsError(f"{target} is {kind_of(target)} by now: nothing was written. {REMEDY}")
            refuse_strangers(target)
            old = _temporary_folder(target, OLD)
            os.replace(target, old / target.name)
            os.replace(work, target)
            shutil.rmtree(old, ignore_errors=True)  # the next run clears what is left of it
        else:
            os.replace(work, target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


@contextmanager
def _full_disks(target: str | Path) -> Iterator[None]:
    """Raises OSError where the library that writes weights says in its own way that the disk is full."""
    try:
        yield
    except SafetensorError as error:
        raise OSError(f"{target} cannot be written: {error}") from error


def rehearse(target: str | Path) -> None:
    """Tries all that it takes to put an output into its place, and leaves everything as it was.

    A folder is made, written to, put into the place and read back there; what is in the place is moved aside and back.

    Raises:
        OSError: If any of that cannot be done, saying what.
    """
    target = Path(target)
    work = old = None
    try:
        work = _temporary_folder(target, PARTIAL)
        if os.path.lexists(target):
            old = _temporary_folder(target, OLD)
            os.replace(target, old / target.name)
            os.replace(old / target.name, target)
        else:
            os.replace(work, target)
            read = _read_mark(target)
            os.replace(target, work)
            if not read:
                raise OSError("what is written there is not what is read")
    except OSError as error:
        reason = error.strerror or error
        raise OSError(f"{beginning(str(target), LONGEST)} cannot be made there ({reason}). {REMEDY}") from error
    finally:
        for folder in filter(None, (work, old)):
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def passing_folder(target: str | Path) -> Iterator[Path]:
    """Gives a temporary folder beside an output, which vanishes when the block ends."""
    work = _temporary_folder(Path(target), PARTIAL)
    try:
        with _full_disks(target):
            yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _temporary_folder(target: Path, ending: str) -> Path:
    """A new folder beside an output, whose name says whose it is; it bears a mark from its first moment on."""
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}.{OURS}", suffix=ending, dir=target.parent))
    _write_mark(work, files={})
    return work


def clear_leftovers(target: str | Path) -> None:
    """Mends what a killed run left beside its own output folder: an old folder comes back, unfinished ones go.

    Only folders whose name `atomic_folder` gives for just this output, and that are empty or marked, are touched.
    """
    target = Path(target)
    pattern = re.compile(rf"\.{re.escape(target.name)}\.{OURS}[a-z0-9_]{{8}}({re.escape(PARTIAL)}|{re.escape(OLD)})")
    for place in target.parent.iterdir() if target.parent.is_dir() else ():
        if not (pattern.fullmatch(place.name) and is_plain_folder(place)):
            continue
        if any(place.iterdir()) and not (place / MARK).is_file():
            continue
        if place.name.endswith(OLD) and (place / target.name).exists() and not target.exists():
            os.replace(place / target.name, target)
        shutil.rmtree(place)
    if is_plain_folder(target) and [path.name for path in target.iterdir()] == [MARK] and _marked_files(target) == {}:
        shutil.rmtree(target)  # of a rehearsal


def write_atomically(path: Path, content: bytes | Callable[[Path], object]) -> None:
    """Writes a file that is there whole or not at all, also after a power cut.

    Args:
        path: Place of the file.
        content: What it holds, or what writes that to a place beside it.
    """
    work = path.with_name(f"{path.name}{PARTIAL}")
    try:
        with _full_disks(path):
            work.write_bytes(content) if isinstance(content, bytes) else content(work)
        with work.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(work, path)
    finally:
        work.unlink(missing_ok=True)


def refuse_other_files(folder: Path, names: Sequence[str]) -> None:
    """Refuses a folder for files of these names that is no such folder yet, and holds something.

    Raises:
        FileExistsError: If it is no plain folder, or holds what no run of this package wrote.
    """
    if not os.path.lexists(folder):
        return
    problem = None
    if not is_plain_folder(folder):
        problem = f"{folder} is {kind_of(folder)}"
    elif entries := sorted(folder.iterdir()):
        known = {*names} if _read_mark(folder) else set()
        strangers = [path.name for path in entries if path.name not in known or not is_plain_file(path)]
        problem = f"{folder} holds {strangers[0]}, which no run of {MADE_BY} wrote" if strangers else None
    if problem:
        raise FileExistsError(
            f"{problem}, and a search would be saved there: choose another output.dir, or move that away"
        )


def kind_of(path: Path) -> str:
    """Says in words what a path is that is no plain folder."""
    if path.is_symlink():
        return "a link" if path.exists() else "a link that leads nowhere"
    mode = path.lstat().st_mode
    kinds = {"a fifo": stat.S_ISFIFO, "a socket": stat.S_ISSOCK, "a file": stat.S_ISREG}
    return next((kind for kind, test in kinds.items() if test(mode)), "a device")


def claim(folder: Path) -> None:
    """Makes a folder, with the folders above it, or takes up one that is there; the mark says which were made.

    Raises:
        OSError: If it cannot be made, saying why.
    """
    try:
        made = [parent for parent in (*reversed(folder.parents), folder) if not parent.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / MARK).exists():
            _write_mark(folder, files={}, made=[str(path.absolute()) for path in made])
    except OSError as error:
        raise OSError(f"{beginning(str(folder), LONGEST)} cannot be made ({error.strerror}). {REMEDY}") from error


def is_output(folder: Path) -> bool:
    """Tells whether a folder bears the mark of a finished output."""
    return bool(_marked_files(folder))


def is_claimed(folder: Path) -> bool:
    """Tells whether a folder is one that `claim` took for a run."""
    return is_plain_folder(folder) and "made" in _read_mark(folder)


def remove_files(folder: Path, names: Sequence[str]) -> None:
    """Removes files by name, and the folders that `claim` made for them, as far as nothing else is in them."""
    if not is_plain_folder(folder):
        return
    made = _read_mark(folder).get("made", [])
    for name in (*(name for name in names if name != MARK), MARK):
        (folder / name).unlink(missing_ok=True)
    above = [folder, *folder.parents]
    for path in above:
        if str(path.absolute()) not in made or any(path.iterdir()):
            break
        path.rmdir()


def nearest_parent(folder: Path) -> Path:
    """Gives what is there already of the way to a folder."""
    return next(parent for parent in folder.absolute().parents if parent.exists())


def check_space(folder: str | Path, needed: int) -> None:
    """Refuses to start what the disk cannot hold.

    Args:
        folder: Place of the output.
        needed: Bytes.

    Raises:
        OSError: If less is free.
    """
    existing = nearest_parent(Path(folder))
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise OSError(
            f"the checkpoint needs {needed / 1e6:,.3g} MB on the disk of {existing}, {free / 1e6:,.3g} MB are free: "
            "make room, or choose another output.dir"
        )
