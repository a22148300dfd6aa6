"""Calibration, validation and test data: loaded, with the promise that no row is in two of them, and drawn from.

Rewards see calibration data, choices see validation data, and the test split is read once, for the report; an overlap
would let a search pick what it is then praised for.
"""

from collections.abc import Mapping
from glob import glob
from itertools import combinations, product
from pathlib import Path
from textwrap import shorten

import numpy as np
from datasets import Dataset, DatasetBuilder, ReadInstruction, load_dataset_builder
from datasets.exceptions import DatasetsError

from hf_mabprune.config import DatasetConfig, TaskConfig
from hf_mabprune.errors import lost_credentials
from hf_mabprune.progress import stage
from hf_mabprune.registry import nearest

FILE_LOADERS = ("parquet", "json", "csv", "text", "arrow", "imagefolder")
UNKNOWN_SIZE = 10**9  # rows, beyond every bound that a slice is likely to name


@stage("reading data")
def load_splits(config: TaskConfig) -> dict[str, Dataset]:
    """Loads the three data sets of a run.

    Slices that overlap are refused as early as can be known: from their text, from the sizes that the Hub states, and
    at the latest from the data itself.

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
    if builder.info.splits and all(info.num_examples for info in builder.info.splits.values()):
        check_slices(slices, _sizes(builder))
    try:
        builder.download_and_prepare()
    except (DatasetsError, ValueError) as error:
        reason = shorten(str(error.__cause__ or error), 400)
        files = ", ".join(map(str, (config.dataset.data_files or {}).values())) or "its files"
        raise ValueError(f"data of '{config.dataset.path}' cannot be read: {reason}; look at {files}") from error
    check_slices(slices, _sizes(builder))
    return {purpose: builder.as_dataset(split=spec) for purpose, spec in slices.items()}


def _sizes(builder: DatasetBuilder) -> dict[str, int]:
    """Gives the rows of each split, by its name."""
    return {name: info.num_examples for name, info in builder.info.splits.items()}


def _builder(config: DatasetConfig) -> DatasetBuilder:
    """Finds what reads the data set; nothing but its description is fetched."""
    if config.path in FILE_LOADERS:
        if not config.data_files:
            example = "train/**" if config.path == "imagefolder" else f"train.{config.path}"
            raise ValueError(f"dataset.path '{config.path}' needs data_files, e.g. {{train: {example}}}")
        for split, files in config.data_files.items():
            for file in [files] if isinstance(files, str) else files:
                remote = "://" in file or "{" in file  # or a pattern that only `datasets` can read
                if not (remote or any(Path(match).exists() for match in [file, *glob(file, recursive=True)])):
                    raise FileNotFoundError(
                        f"dataset.data_files: no file '{file}' for split '{split}'; paths are relative to {Path.cwd()}"
                    )
    elif config.path.startswith((".", "/", "~")) and not Path(config.path).exists():
        raise FileNotFoundError(f"dataset.path: no folder '{config.path}'; paths are relative to {Path.cwd()}")
    try:
        return load_dataset_builder(
            config.path, name=config.name, data_files=config.data_files, revision=config.revision
        )
    except ConnectionError as error:
        raise ConnectionError(
            f"data set '{config.path}' cannot be fetched from the Hub: {error}. Check the connection, or use local "
            f"files: path one of {', '.join(FILE_LOADERS)}, with data_files"
        ) from error
    except FileNotFoundError as error:
        raise FileNotFoundError(f"data set '{config.path}' was not found: {error}") from error


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
        known = _unknown_sizes(instruction) if sizes is None else sizes
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


def _unknown_sizes(instruction: ReadInstruction) -> dict[str, int]:
    """Gives a size beyond every bound to each split that the instruction reads."""
    names = [part.split("[")[0] for part in instruction.to_spec().split("+")]
    return dict.fromkeys(names, UNKNOWN_SIZE)


def _rows(
    purpose: str, spec: str, instruction: ReadInstruction, sizes: Mapping[str, int]
) -> list[tuple[str, int, int]]:
    """Gives (split, start, stop) of each part of a slice, in row numbers."""
    for split in (name for name in _unknown_sizes(instruction) if name not in sizes):
        raise ValueError(
            f"splits.{purpose}: no split '{split}' in the data set.{nearest(split, sizes)} "
            f"Its splits: {', '.join(sizes)}"
        )
    parts = [(part.splitname, part.from_, part.to) for part in instruction.to_absolute(dict(sizes))]
    if not any(start < stop for _, start, stop in parts):
        rows = ", ".join(f"'{split}' has {sizes[split]:,} rows" for split, _, _ in parts)
        raise ValueError(f"splits.{purpose}: '{spec}' must not be empty, but it holds no row ({rows}); widen it")
    return parts


def draw(dataset: Dataset, count: int | None, seed: int) -> Dataset:
    """Draws `count` rows without replacement, all rows in random order if there are fewer.

    The draw depends on the seed and the number of rows alone, so every process draws the same.

    Args:
        dataset: Rows to draw from.
        count: Number of rows; None leaves the data set as it is.
        seed: Seed of the draw.
    """
    if count is None:
        return dataset
    rows = np.random.default_rng(seed).choice(len(dataset), size=min(count, len(dataset)), replace=False)
    return dataset.select(rows)
