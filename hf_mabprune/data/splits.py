"""Calibration, validation and test data: loaded, with the promise that no row is in two of them, and drawn from.

Rewards see calibration data, choices see validation data, and the test split is read once, for the report; an overlap
would let a search pick what it is then praised for.
"""

from collections.abc import Mapping

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from hf_mabprune.config import SAMPLE_TEXT, TaskConfig
from hf_mabprune.data.columns import with_fields
from hf_mabprune.data.files import refuse_shared_files
from hf_mabprune.data.loaders import builder_of, files_of, sizes_of
from hf_mabprune.data.reading import reading
from hf_mabprune.data.sample_text import NOTE, sample_text
from hf_mabprune.data.saved_folders import is_saved, read_saved
from hf_mabprune.data.slices import check_slices, cut_out, splits_of
from hf_mabprune.data.streams import streamed_splits, streaming_note
from hf_mabprune.errors import lost_credentials
from hf_mabprune.progress import stage


@stage("reading data")
def load_splits(config: TaskConfig, seed: int = 0) -> dict[str, Dataset]:
    """Loads the data sets of a run.

    Slices that overlap are refused as early as can be known: from their text, from the files that they read, from the
    sizes that the Hub states, and at the latest from the data itself.

    Args:
        config: Task settings: the data set, and a slice of it for each purpose.
        seed: Seed of what is shuffled before it is sliced, and of streams.

    Returns:
        Purpose -> rows, for `calibration`, `validation`, `test`, and `certification` where it is named.

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
    slices = config.splits.slices()
    check_slices(slices)
    if config.dataset.streaming:
        splits = streamed_splits(config, slices, seed)
    elif config.dataset.path == SAMPLE_TEXT or is_saved(config.dataset.path):
        whole = sample_text() if config.dataset.path == SAMPLE_TEXT else read_saved(config.dataset)
        splits = _sliced(whole, slices, seed if config.splits.shuffle else None)
    else:
        splits = _built(config, slices, seed)
    return {purpose: with_fields(dataset, config.columns.values()) for purpose, dataset in splits.items()}


def _built(config: TaskConfig, slices: Mapping[str, str], seed: int) -> dict[str, Dataset]:
    """Loads slices of files, or of a data set on the Hub."""
    builder = builder_of(config.dataset)
    refuse_shared_files(files_of(builder), {purpose: splits_of(purpose, spec) for purpose, spec in slices.items()})
    if builder.info.splits and all(info.num_examples for info in builder.info.splits.values()):
        check_slices(slices, sizes_of(builder))
    with reading(config.dataset):
        builder.download_and_prepare()
    sizes = sizes_of(builder)
    check_slices(slices, sizes)
    with reading(config.dataset):
        if config.splits.shuffle:
            return _sliced({name: builder.as_dataset(split=name) for name in sizes}, slices, seed)
        return {purpose: builder.as_dataset(split=spec) for purpose, spec in slices.items()}


def _sliced(datasets: Mapping[str, Dataset], slices: Mapping[str, str], seed: int | None) -> dict[str, Dataset]:
    """Takes slices of whole splits, which are shuffled first where there is a seed."""
    check_slices(slices, {name: len(rows) for name, rows in datasets.items()})
    shuffled = {name: rows if seed is None else draw(rows, len(rows), seed) for name, rows in datasets.items()}
    return cut_out(shuffled, slices)


def notes_on(config: TaskConfig) -> list[str]:
    """Says what a reader of figures must know of where the data come from."""
    return [
        *([NOTE] if config.dataset.path == SAMPLE_TEXT else []),
        *([streaming_note(config)] if config.dataset.streaming else []),
    ]


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
