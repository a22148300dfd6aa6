"""Calibration, validation and test data: loading, the promise that they do not overlap, sampling and batching."""

from collections.abc import Mapping
from glob import glob
from itertools import combinations
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np
import torch
from datasets import Dataset, DatasetBuilder, ReadInstruction, load_dataset_builder
from datasets.exceptions import DatasetsError
from numpy.typing import NDArray

from hf_mabprune.config import DatasetConfig, TaskConfig
from hf_mabprune.registry import nearest
from hf_mabprune.tasks.base import Batch, Task

FILE_LOADERS = ("parquet", "json", "csv", "text", "arrow")
UNKNOWN_SIZE = 10**9
MOST_PARTS = 4  # that a batch is split into


def load_splits(config: TaskConfig) -> dict[str, Dataset]:
    """The three data sets of a run.

    Slices that overlap are refused as early as can be known: from their text, from the sizes that the Hub states, and
    at the latest from the data itself.

    Returns:
        `calibration`, `validation` and `test`.

    Raises:
        FileNotFoundError: If a file or the data set does not exist.
        ConnectionError: If the Hub cannot be reached.
        ValueError: If slices overlap, are empty or malformed, a split is unknown, or files cannot be read.
    """
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
    return {name: info.num_examples for name, info in builder.info.splits.items()}


def _builder(config: DatasetConfig) -> DatasetBuilder:
    """What reads the data set; nothing but its description is fetched."""
    if config.path in FILE_LOADERS:
        if not config.data_files:
            raise ValueError(f"dataset.path '{config.path}' needs data_files, e.g. {{train: train.{config.path}}}")
        for split, files in config.data_files.items():
            for file in [files] if isinstance(files, str) else files:
                remote = "://" in file or "{" in file  # or a pattern that only `datasets` can read
                if not (remote or Path(file).exists() or glob(file, recursive=True)):
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
    for (one, first), (other, second) in combinations(ranges.items(), 2):
        for split, start, stop in first:
            for again, begin, end in second:
                if split == again and max(start, begin) < min(stop, end):
                    shared = f"{min(stop, end) - max(start, begin):,} rows" if sizes else "rows"
                    raise ValueError(
                        f"splits must not overlap, but {one} '{slices[one]}' and {other} '{slices[other]}' share "
                        f"{shared} of '{split}'; slice them apart, e.g. {split}[2000:] and {split}[:2000]"
                    )


def _parse(purpose: str, spec: str) -> ReadInstruction:
    try:
        return ReadInstruction.from_spec(spec)
    except ValueError as error:
        raise ValueError(
            f"splits.{purpose}: '{spec}' is no slice ({error}); write e.g. train, train[2000:] or train[:10%]"
        ) from None


def _unknown_sizes(instruction: ReadInstruction) -> dict[str, int]:
    """A size beyond every bound, for each split that the instruction reads."""
    names = [part.split("[")[0] for part in instruction.to_spec().split("+")]
    return dict.fromkeys(names, UNKNOWN_SIZE)


def _rows(
    purpose: str, spec: str, instruction: ReadInstruction, sizes: Mapping[str, int]
) -> list[tuple[str, int, int]]:
    """(split, start, stop) of each part of a slice."""
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
    """`count` rows drawn without replacement, all rows in random order if there are fewer; None leaves it as it is.

    The draw depends on the seed and the number of rows alone, so every process draws the same.
    """
    if count is None:
        return dataset
    rows = np.random.default_rng(seed).choice(len(dataset), size=min(count, len(dataset)), replace=False)
    return dataset.select(rows)


def encode_sample(task: Task, dataset: Dataset, count: int | None, seed: int) -> Dataset:
    """At most `count` encoded examples, drawn with `seed`; None encodes all, in order.

    Where an example is a row, rows are drawn first, so that nothing is tokenised in vain; windows of a language model
    are drawn after they are cut.
    """
    if task.rows_are_examples:
        return task.encode(draw(dataset, count, seed))
    return draw(task.encode(dataset), count, seed)


def batches_of(
    task: Task, encoded: Dataset, batch_size: int, equal: bool = False, by_length: bool = False
) -> list[Batch]:
    """Collated batches on the CPU, in order.

    Args:
        task: That the examples were encoded by.
        encoded: Encoded examples.
        batch_size: Examples in a batch.
        equal: Leave out a last batch that is shorter than the others, so that means over batches weigh all examples
            alike. A single short batch stays.
        by_length: From the shortest example to the longest, so that little is padded.

    Raises:
        ValueError: If there are no examples.
    """
    if not len(encoded):
        raise ValueError("a batch takes at least one example, got none; choose a larger slice")
    if by_length:
        encoded = encoded.select(np.argsort([_length(ids) for ids in encoded["input_ids"]], kind="stable"))
    drop = equal and len(encoded) > batch_size
    return [
        task.collate([dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)])
        for columns in encoded.iter(batch_size, drop_last_batch=drop)
    ]


def split_by_length(batch: Batch, parts: int = MOST_PARTS) -> list[Batch]:
    """The examples of a batch sorted by length and split into equal parts, each cut to its longest sequence.

    A batch that is padded on the left, or hardly at all, stays as it is.
    """
    attention = batch.get("attention_mask")
    if attention is None or not bool(attention[..., 0].all()):
        return [batch]
    lengths = attention.sum(-1).reshape(len(attention), -1).amax(1).cpu()
    order = torch.argsort(lengths, stable=True)
    chunks = [chunk for chunk in np.array_split(order.numpy(), min(parts, len(order))) if len(chunk)]
    padded = sum(len(chunk) * int(lengths[chunk].max()) for chunk in chunks)
    width = batch["input_ids"].shape[-1]
    if padded > 0.9 * len(order) * width:
        return [batch]

    def cut(name: str, tensor: torch.Tensor, rows: NDArray[np.int64]) -> torch.Tensor:
        picked = tensor[torch.as_tensor(rows, device=tensor.device)]
        along = tensor.ndim > 1 and tensor.shape[-1] == width and not tensor.is_floating_point()
        return picked[..., : int(lengths[rows].max())] if along else picked

    return [{name: cut(name, tensor, rows) for name, tensor in batch.items()} for rows in chunks]


def _length(ids: list[Any]) -> int:
    """Tokens of an example, or of the longest of its sequences."""
    return max(map(len, ids)) if isinstance(ids[0], list) else len(ids)
