"""Where an output may lie: never over what the run works from, what somebody else made, or what is no plain folder."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from glob import has_magic
from pathlib import Path

from hf_mabprune.config import PruneConfig, VocabularyConfig
from hf_mabprune.errors import beginning, in_words
from hf_mabprune.runtime.files import LONGEST, MARK, REMEDY, is_plain_folder, kind_of, nearest_parent, refuse_strangers

MOUNTS = Path("/proc/self/mountinfo")


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
    vocabulary = settings.prune.vocabulary or VocabularyConfig()
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
        *(Protected("the texts whose tokens stay", Path(file)) for file in vocabulary.files()),
        *(Protected("the config", Path(file)) for file in configs),
        Protected("the logs", Path(output.log_dir or logs)),
        Protected("the working directory", Path.cwd()),
        Protected("your home folder", Path("~").expanduser()),
    ]


def check_output_dir(folder: str | Path, overwrite: bool, protected: Sequence[Protected] = ()) -> None:
    """Refuses to write over what is there, or where nothing can be written.

    Args:
        folder: Place of the output.
        overwrite: Whether an earlier output may be replaced.
        protected: Places that must survive.

    Raises:
        ValueError: If it names no folder of its own.
        FileExistsError: If something is there that is no earlier output, or that is one and `overwrite` is not set, or
            if a source would go with it.
        OSError: If the folder cannot be made where it shall be.
    """
    folder = Path(folder)
    with _in_one_line(folder):
        if os.path.lexists(folder) and not is_plain_folder(folder):
            raise FileExistsError(f"{folder} is {kind_of(folder)}. {REMEDY}")
        _check_sources(folder, protected)
        if folder.name in ("", ".."):
            raise ValueError(f"output.dir must name a folder of its own, e.g. runs/pruned, got '{folder}'")
        if folder.is_dir():
            _check_replaceable(folder, overwrite)
        place = nearest_parent(folder)
        if not place.is_dir():
            raise NotADirectoryError(f"{folder} cannot be made, for {place} is no folder. {REMEDY}")
        if not os.access(place, os.W_OK | os.X_OK):
            raise PermissionError(f"{folder} cannot be made, for {place} is not writable. {REMEDY}")


@contextmanager
def _in_one_line(folder: Path) -> Iterator[None]:
    """Says what is wrong with a path that the system refuses: too long, with a zero in it, in a loop of links."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(
            f"output.dir '{beginning(str(folder), LONGEST)}' cannot be used ({error.strerror}). {REMEDY}"
        ) from None
    except (ValueError, RuntimeError) as error:
        if "output.dir" in str(error):
            raise
        raise ValueError(f"output.dir {str(folder)[:200]!r} cannot be used ({in_words(error)}). {REMEDY}") from None


def _check_sources(folder: Path, protected: Sequence[Protected]) -> None:
    """Raises FileExistsError for a folder that is, holds or lies in something that must survive."""
    place = folder.resolve()
    for source in protected:
        path = source.path.expanduser().resolve()
        if place == path:  # also of a name on the Hub, which the output would stand for from then on
            raise FileExistsError(f"{folder} is {source.what}. {REMEDY}")
        if not path.exists():
            continue
        if place in path.parents:
            raise FileExistsError(f"{folder} holds {source.what}, {source.path}. {REMEDY}")
        if source.whole and path.is_dir() and path in place.parents and folder.is_dir():
            raise FileExistsError(f"{folder} exists and lies inside {source.what}, {source.path}. {REMEDY}")


def _check_replaceable(folder: Path, overwrite: bool) -> None:
    """Raises FileExistsError for a folder that cannot be replaced, or must not be."""
    if mount := _mount_in(folder):
        where = "is a mount point" if mount == folder.resolve() else f"holds a mount point, {mount}"
        raise FileExistsError(
            f"{folder} {where}, which cannot be replaced in one go: name a folder inside it, e.g. {mount / 'pruned'}"
        )
    refuse_strangers(folder)
    if any(path.name != MARK for path in folder.iterdir()) and not overwrite:
        raise FileExistsError(f"{folder} exists. {REMEDY}, or set output.overwrite: true")


def _mount_in(folder: Path) -> Path | None:
    """Finds a mount point at or below a folder."""
    place = folder.resolve()
    if os.path.ismount(place):
        return place
    try:  # a folder that is bound to another place of the same disk
        lines = MOUNTS.read_text().splitlines()
    except OSError:
        return None
    mounts = [Path(line.split()[4].encode().decode("unicode_escape")) for line in lines if len(line.split()) > 4]
    return next((mount for mount in mounts if place == mount or place in mount.parents), None)


def _without_pattern(path: Path) -> Path:
    """The part of a path before its first wildcard."""
    literal = []
    for part in path.parts:
        if has_magic(part) or "{" in part:
            break
        literal.append(part)
    return Path(*literal)
