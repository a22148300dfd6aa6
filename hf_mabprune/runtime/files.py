"""Files of a run: written whole or not at all; and nothing is deleted but what a run of this package made.

An output folder bears a mark, a file that lists what the run put there. A folder is replaced only if it is empty, or
if it bears the mark and holds nothing that the mark does not list; and never where that could take with it what the
run works from: model, data, config, logs or the working directory.
"""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from glob import has_magic
from pathlib import Path

from safetensors import SafetensorError

from hf_mabprune.config import PruneConfig

PARTIAL, OLD = ".partial", ".old"  # endings of folders that are not, or no longer, the output
OURS = "mabprune-"  # begins what follows the output's name in the names of such folders
MARK = ".mabprune-output.json"
MADE_BY = "hf_mabprune"


@dataclass(frozen=True)
class Protected:
    """Something that an output must not take the place of.

    Attributes:
        what: Words for a message, e.g. "the model".
        path: File or folder, which need not exist.
        whole: Whether nothing inside it is replaced either.
    """

    what: str
    path: Path
    whole: bool = False


def protected_by(settings: PruneConfig, logs: Path, configs: Sequence[str | Path] = ()) -> list[Protected]:
    """Finds the files and folders that a run reads, or is started from.

    Args:
        settings: Run settings.
        logs: Folder of trackers that write files, where the settings name no other.
        configs: Files that the settings were read from.
    """
    dataset, output = settings.task.dataset, settings.output
    files = [
        file
        for given in (dataset.data_files or {}).values()
        for file in ([given] if isinstance(given, str) else given)
        if "://" not in file
    ]
    return [
        Protected("the model", Path(settings.model.name), whole=True),
        Protected("the data", Path(dataset.path), whole=True),
        *(Protected("the data", _without_pattern(Path(file))) for file in files),
        *(Protected("the config", Path(file)) for file in configs),
        Protected("the logs", Path(output.log_dir or logs)),
        Protected("the working directory", Path.cwd()),
    ]


def check_output_dir(folder: str | Path, overwrite: bool, protected: Sequence[Protected] = ()) -> None:
    """Refuses to write over what is there, or where nothing can be written.

    Args:
        folder: Place of the output.
        overwrite: Whether an earlier output may be replaced.
        protected: Places that must survive.

    Raises:
        FileExistsError: If something is there that is no earlier output, or that is one and `overwrite` is not set, or
            if a source would go with it.
        NotADirectoryError, PermissionError: If the folder cannot be made where it shall be.
    """
    folder = Path(folder)
    if os.path.lexists(folder) and not _is_folder(folder):
        kind = "a link" if folder.is_symlink() else "a file" if folder.is_file() else "no folder"
        raise FileExistsError(f"{folder} is {kind}. Choose another output.dir")
    if folder.is_dir():
        _check_replaceable(folder, overwrite, protected)
    place = _nearest_parent(folder)
    if not place.is_dir():
        raise NotADirectoryError(f"{folder} cannot be made, for {place} is no folder. Choose another output.dir")
    if not os.access(place, os.W_OK | os.X_OK):
        raise PermissionError(f"{folder} cannot be made, for {place} is not writable. Choose another output.dir")


def _check_replaceable(folder: Path, overwrite: bool, protected: Sequence[Protected]) -> None:
    """Raises FileExistsError for a folder that an output must not take the place of."""
    place = folder.resolve()
    for source in protected:
        path = source.path.expanduser().resolve()
        if not path.exists():
            continue
        if place == path or place in path.parents:
            holds = f"is {source.what}" if place == path else f"holds {source.what}, {source.path}"
            raise FileExistsError(f"{folder} {holds}. Choose another output.dir")
        if source.whole and path.is_dir() and path in place.parents:
            raise FileExistsError(
                f"{folder} exists and lies inside {source.what}, {source.path}. Choose another output.dir"
            )
    _refuse_strangers(folder)
    if any(folder.iterdir()) and not overwrite:
        raise FileExistsError(f"{folder} exists. Choose another output.dir, or set output.overwrite: true")


def _refuse_strangers(folder: Path) -> None:
    """Raises FileExistsError for a folder that holds more than an earlier output."""
    if stranger := _stranger_in(folder):
        raise FileExistsError(
            f"{folder} exists and holds {stranger}, which no run of {MADE_BY} wrote: nothing was touched. Choose "
            "another output.dir, or move that away yourself"
        )


def _stranger_in(folder: Path) -> str | None:
    """The first file below a folder that its mark does not list; where there is no mark, the first entry of all."""
    if not (folder / MARK).is_file():
        return min((path.name for path in folder.iterdir()), default=None)
    listed = {*_marked_files(folder), MARK}
    names = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*")}
    return min((name for name, path in names.items() if name not in listed and not _is_folder(path)), default=None)


def _is_folder(path: Path) -> bool:
    """Whether it is a folder itself, and no link to one."""
    return path.is_dir() and not path.is_symlink()


def _marked_files(folder: Path) -> list[str]:
    """What a mark lists; nothing where it cannot be read."""
    try:
        mark = json.loads((folder / MARK).read_text())
        return list(mark["files"]) if mark["made_by"] == MADE_BY else []
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _mark(folder: Path) -> None:
    """Writes down what a finished output consists of."""
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())
    (folder / MARK).write_text(json.dumps({"made_by": MADE_BY, "files": files}, indent=1))


def _without_pattern(path: Path) -> Path:
    """The part of a path before its first wildcard."""
    literal = []
    for part in path.parts:
        if has_magic(part) or "{" in part:
            break
        literal.append(part)
    return Path(*literal)


def _nearest_parent(folder: Path) -> Path:
    """What is there already of the way to a folder."""
    return next(parent for parent in folder.absolute().parents if parent.exists())


@contextmanager
def atomic_folder(target: str | Path) -> Iterator[Path]:
    """Gives a temporary folder beside `target` that takes its place when the block ends well, and else vanishes.

    What it replaces must have passed `check_output_dir`.

    Raises:
        OSError: If the disk is full, whoever noticed it.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    work = _temporary_folder(target, PARTIAL)
    try:
        yield work
        _mark(work)
        work.chmod(0o755)
        if target.exists():
            _refuse_strangers(target)  # a search takes long, and people go on working
            old = _temporary_folder(target, OLD)
            os.replace(target, old / target.name)
            os.replace(work, target)
            shutil.rmtree(old)
        else:
            os.replace(work, target)
    except SafetensorError as error:  # how the library that writes weights says that the disk is full
        raise OSError(f"{target} cannot be written: {error}") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _temporary_folder(target: Path, ending: str) -> Path:
    """A new folder beside an output, whose name says whose it is; it bears a mark from its first moment on."""
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}.{OURS}", suffix=ending, dir=target.parent))
    _mark(work)
    return work


def clear_leftovers(target: str | Path) -> None:
    """Mends what a killed run left beside its own output folder: an old folder comes back, unfinished ones go.

    Only folders whose name `atomic_folder` gives for just this output, and that are empty or marked, are touched.
    """
    target = Path(target)
    pattern = re.compile(rf"\.{re.escape(target.name)}\.{OURS}[a-z0-9_]{{8}}({re.escape(PARTIAL)}|{re.escape(OLD)})")
    for place in target.parent.iterdir() if target.parent.is_dir() else ():
        if not (pattern.fullmatch(place.name) and _is_folder(place)):
            continue
        if any(place.iterdir()) and not (place / MARK).is_file():
            continue
        if place.name.endswith(OLD) and (place / target.name).exists() and not target.exists():
            os.replace(place / target.name, target)
        shutil.rmtree(place)


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file that is there whole or not at all, also after a power cut."""
    work = path.with_name(f"{path.name}{PARTIAL}")
    try:
        with work.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(work, path)
    finally:
        work.unlink(missing_ok=True)


def refuse_other_files(folder: Path, names: Sequence[str]) -> None:
    """Raises FileExistsError for a folder that holds anything but files of these names."""
    others = sorted({path.name for path in folder.iterdir()} - {*names}) if folder.is_dir() else []
    if others:
        raise FileExistsError(
            f"{folder} holds {others[0]}, which no run of {MADE_BY} wrote, and a search would be saved there: "
            "choose another output.dir, or move that away"
        )


def remove_files(folder: Path, names: Sequence[str]) -> None:
    """Removes files by name, and the folder if nothing else is in it."""
    if not folder.is_dir():
        return
    for name in names:
        (folder / name).unlink(missing_ok=True)
    if not any(folder.iterdir()):
        folder.rmdir()


def check_space(folder: str | Path, needed: int) -> None:
    """Refuses to start what the disk cannot hold.

    Args:
        folder: Place of the output.
        needed: Bytes.

    Raises:
        OSError: If less is free.
    """
    existing = _nearest_parent(Path(folder))
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise OSError(
            f"the checkpoint needs {needed / 1e6:,.0f} MB on the disk of {existing}, {free / 1e6:,.0f} MB are free: "
            "make room, or choose another output.dir"
        )
