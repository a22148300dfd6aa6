"""Calibration, validation and test data: loaded, with the promise that no row is in two of them, and drawn from.

Rewards see calibration data, choices see validation data, and the test split is read once, for the report; an overlap
would let a search pick what it is then praised for.
"""

import os
from collections.abc import Mapping
from glob import glob
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, DatasetBuilder, ReadInstruction, load_dataset_builder
from numpy.typing import NDArray

from hf_mabprune.config import DatasetConfig, TaskConfig
from hf_mabprune.data.files import Files, refuse_shared_files, refuse_unreadable, state_of
from hf_mabprune.data.options import check_options
from hf_mabprune.data.reading import reading
from hf_mabprune.errors import in_words, lost_credentials, without_credentials
from hf_mabprune.progress import stage
from hf_mabprune.registry import nearest

FILE_LOADERS = ("parquet", "json", "csv", "text", "arrow", "imagefolder")
RUNS_CODE = ("pandas",)  # a loader of pickles, which may run anything
FIXED = {"csv": {"index_col": False}}  # else a field too many shifts all names by one, without a word
UNKNOWN_SIZE = 10**9  # rows, beyond every bound that a slice is likely to name


@stage("reading data")
def load_splits(config: TaskConfig) -> dict[str, Dataset]:
    """Loads the three data sets of a run.

    Slices that overlap are refused as early as can be known: from their text, from the files that they read, from the
    sizes that the Hub states, and at the latest from the data itself.

    Args:
        config: Task settings: the data set, and a slice of it for each purpose.

    Returns:
        Purpose -> rows, for `calibration`, `validation` and `test`.

    Raises:
        FileNotFoundError: If a file or the data set does not exist.
        ConnectionError: If the Hub cannot be reached.
        ValueError: If slices overlap, are empty or malformed, a split is unknown, or files cannot be read.
    """
    if lost_credentials(str(config.dataset)):
        raise ValueError(
            "the address of the data lost its credentials when it was saved; give the config that the run was started "
            "with"
        )
    slices = config.splits.model_dump()
    check_slices(slices)
    builder = _builder(config.dataset)
    refuse_shared_files(_files(builder), {purpose: _names(_parse(purpose, spec)) for purpose, spec in slices.items()})
    if builder.info.splits and all(info.num_examples for info in builder.info.splits.values()):
        check_slices(slices, _sizes(builder))
    with reading(config.dataset):
        builder.download_and_prepare()
    check_slices(slices, _sizes(builder))
    with reading(config.dataset):
        return {purpose: builder.as_dataset(split=spec) for purpose, spec in slices.items()}


def _sizes(builder: DatasetBuilder) -> dict[str, int]:
    """Gives the rows of each split, by its name."""
    return {name: info.num_examples for name, info in builder.info.splits.items()}


def _files(builder: DatasetBuilder) -> Files:
    """Gives split -> files, patterns resolved."""
    found = getattr(builder.config, "data_files", None) or {}
    return {str(split): [str(file) for file in files] for split, files in found.items()}


def _builder(config: DatasetConfig) -> DatasetBuilder:
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
    files = _files(builder)
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


def check_slices(slices: Mapping[str, str], sizes: Mapping[str, int] | None = None) -> None:
    """Refuses slices that share rows.

    Args:
        slices: Purpose -> slice, e.g. {"calibration": "train[2000:]", "validation": "train[:10%]"}.
        sizes: Rows of each split of the source. Without them only what holds for any size is refused: slices that are
            whole splits, or whose bounds are row numbers from the start.

    Raises:
        ValueError: For a malformed slice, an unknown split, an empty slice or an overlap; the message names them.
    """
    ranges: dict[str, list[tuple[str, int, int]]] = {}
    for purpose, spec in slices.items():
        instruction = _parse(purpose, spec)
        if sizes is None and ("%" in spec or "-" in spec):
            continue
        known = dict.fromkeys(_names(instruction), UNKNOWN_SIZE) if sizes is None else sizes
        ranges[purpose] = _rows(purpose, spec, instruction, known)
    for (one, one_parts), (other, other_parts) in combinations(ranges.items(), 2):
        for (split, start, stop), (other_split, other_start, other_stop) in product(one_parts, other_parts):
            shared = min(stop, other_stop) - max(start, other_start)
            if split == other_split and shared > 0:
                rows = f"{shared:,} rows" if sizes else "rows"
                raise ValueError(
                    f"splits must not overlap, but {one} '{slices[one]}' and {other} '{slices[other]}' share "
                    f"{rows} of '{split}'; slice them apart, e.g. {split}[2000:] and {split}[:2000]"
                )


def _parse(purpose: str, spec: str) -> ReadInstruction:
    """Reads a slice such as "train[:10%]", or refuses it by its purpose."""
    try:
        return ReadInstruction.from_spec(spec)
    except ValueError as error:
        raise ValueError(
            f"splits.{purpose}: '{spec}' is no slice ({error}); write e.g. train, train[2000:] or train[:10%]"
        ) from None


def _names(instruction: ReadInstruction) -> list[str]:
    """Names the splits that the instruction reads."""
    return [part.split("[")[0] for part in instruction.to_spec().split("+")]


def _rows(
    purpose: str, spec: str, instruction: ReadInstruction, sizes: Mapping[str, int]
) -> list[tuple[str, int, int]]:
    """Gives (split, start, stop) of each part of a slice, in row numbers."""
    for split in (name for name in _names(instruction) if name not in sizes):
        raise ValueError(
            f"splits.{purpose}: no split '{split}' in the data set.{nearest(split, sizes)} "
            f"Its splits: {', '.join(sizes)}"
        )
    parts = [(part.splitname, part.from_, part.to) for part in instruction.to_absolute(dict(sizes))]
    if not any(start < stop for _, start, stop in parts):
        rows = ", ".join(f"'{split}' has {sizes[split]:,} rows" for split, _, _ in parts)
        raise ValueError(f"splits.{purpose}: '{spec}' must not be empty, but it holds no row ({rows}); widen it")
    return parts


def draw(dataset: Dataset, count: int | None, seed: int, further: int = 0) -> Dataset:
    """Draws `count` rows without replacement, all rows in random order if there are fewer.

    The draw depends on the seed and the number of rows alone, so every process draws the same.

    Args:
        dataset: Rows to draw from.
        count: Number of rows; None leaves the data set as it is.
        seed: Seed of the draw.
        further: Rows that are drawn beside those, as many as there are; they come after them.
    """
    return dataset if count is None else dataset.select(drawn_rows(len(dataset), count, seed, further))


def drawn_rows(size: int, count: int, seed: int, further: int = 0) -> NDArray[np.int64]:
    """Gives the numbers of the rows that `draw` takes of `size`."""
    rng = np.random.default_rng(seed)
    first = rng.choice(size, size=min(count, size), replace=False)
    return np.concatenate([first, rng.permutation(np.setdiff1d(np.arange(size), first))[:further]])
