"""What reads a data set: a loader of local files, a folder, or a name on the Hub; never a script or a pickle."""

import os
from glob import glob
from pathlib import Path
from typing import Any

from datasets import DatasetBuilder, load_dataset_builder

from hf_mabprune.config import DatasetConfig
from hf_mabprune.data.files import Files, refuse_unreadable, state_of
from hf_mabprune.data.options import check_options
from hf_mabprune.data.reading import reading
from hf_mabprune.errors import in_words, without_credentials

FILE_LOADERS = ("parquet", "json", "csv", "text", "arrow", "imagefolder")
RUNS_CODE = ("pandas",)  # a loader of pickles, which may run anything
FIXED = {"csv": {"index_col": False}}  # else a field too many shifts all names by one, without a word


def sizes_of(builder: DatasetBuilder) -> dict[str, int]:
    """Gives the rows of each split, by its name."""
    return {name: info.num_examples for name, info in builder.info.splits.items()}


def files_of(builder: DatasetBuilder) -> Files:
    """Gives split -> files, patterns resolved."""
    found = getattr(builder.config, "data_files", None) or {}
    return {str(split): [str(file) for file in files] for split, files in found.items()}


def builder_of(config: DatasetConfig) -> DatasetBuilder:
    """Finds what reads the data set; nothing but its description is fetched."""
    path = os.path.expanduser(config.path)
    if path in RUNS_CODE:
        raise ValueError(
            f"dataset.path must not be '{path}', whose files are pickles and may run code; save the data as parquet "
            f"(DataFrame.to_parquet). Loaders: {', '.join(FILE_LOADERS)}"
        )
    if path in FILE_LOADERS and not config.data_files:
        example = "train/**" if path == "imagefolder" else f"train.{path}"
        raise ValueError(f"dataset.path '{path}' needs data_files, e.g. {{train: {example}}}")
    if path.startswith((".", "/")) and not os.path.exists(path):
        raise FileNotFoundError(f"dataset.path: no folder '{config.path}'; paths are relative to {Path.cwd()}")
    if os.path.isfile(path) and path not in FILE_LOADERS:
        raise ValueError(
            f"dataset.path must be a folder, a name on the Hub or a loader, got the file '{config.path}'; for a file "
            f"of data: path one of {', '.join(FILE_LOADERS)}, with data_files; scripts are not run"
        )
    named: dict[str, Any] = {"name": config.name, "data_files": _named_files(config), "revision": config.revision}
    builder = _described(path, config, named)
    check_options(type(builder), config.path, config.options)
    files = files_of(builder)
    refuse_unreadable(files, never_empty=path in ("parquet", "json", "csv", "arrow"))
    options = {**FIXED.get(builder.name, {}), **config.options}
    state = state_of(files)
    if not (state or options):
        return builder
    # The description is part of what the cache is kept under.
    return _described(path, config, {**named, **options, "description": state})


def _named_files(config: DatasetConfig) -> dict[str, list[str]] | None:
    """Gives the files that the config names, with the home folder for "~"; refuses those that do not exist."""
    if not config.data_files:
        return None
    named = {}
    for split, files in config.data_files.items():
        named[split] = [os.path.expanduser(file) for file in ([files] if isinstance(files, str) else files)]
        if not all(named[split]) or not named[split]:
            raise ValueError(f"dataset.data_files: no file is named for split '{split}'; leave it out, or name one")
        for file in named[split]:
            remote = "://" in file or "{" in file  # or a pattern that only `datasets` can read
            if not (remote or any(map(os.path.exists, [file, *glob(file, recursive=True)]))):
                raise FileNotFoundError(
                    f"dataset.data_files: no file '{file}' for split '{split}'; paths are relative to {Path.cwd()}"
                )
            if os.path.exists(file) and not os.path.isfile(file):
                raise ValueError(
                    f"dataset.data_files: '{file}' for split '{split}' must be a plain file, not a folder, pipe or "
                    f"device; name the files in a folder, e.g. {Path(file, '**')}"
                )
    return named


def _described(path: str, config: DatasetConfig, options: dict[str, Any]) -> DatasetBuilder:
    """Reads the description of a data set.

    Raises:
        ConnectionError: If the Hub cannot be reached.
        FileNotFoundError: If there is no such data set.
        ValueError: For whatever else is wrong with it.
    """
    try:
        with reading(config):
            return load_dataset_builder(path, **options)
    except ValueError as error:
        cause = error.__cause__
        if isinstance(cause, ConnectionError):
            raise ConnectionError(
                f"data set '{without_credentials(path)}' cannot be fetched from the Hub: {in_words(cause)}. Check the "
                f"connection, or use local files: path one of {', '.join(FILE_LOADERS)}, with data_files"
            ) from cause
        if isinstance(cause, FileNotFoundError):
            raise FileNotFoundError(
                f"data set '{without_credentials(path)}' was not found: {in_words(cause)}"
            ) from cause
        raise
