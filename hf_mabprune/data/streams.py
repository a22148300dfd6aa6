"""Data sets that are read as a stream: as many rows as a run asks for, without the rest."""

from collections.abc import Mapping

from datasets import Dataset, IterableDataset

from hf_mabprune.config import REFIT_SHARE, SAMPLE_TEXT, TaskConfig
from hf_mabprune.data.files import refuse_shared_files
from hf_mabprune.data.given import as_dataset
from hf_mabprune.data.loaders import builder_of, files_of
from hf_mabprune.data.reading import reading
from hf_mabprune.data.saved_folders import is_saved
from hf_mabprune.data.slices import UNKNOWN_SIZE, row_ranges, splits_of, takes_a_length

BUFFER = 10_000  # rows, of which the next one is drawn


def streamed_splits(config: TaskConfig, slices: Mapping[str, str], seed: int) -> dict[str, Dataset]:
    """Reads so many rows of each slice as the run asks for, after a shuffle within a buffer.

    Args:
        config: Task settings.
        slices: Purpose -> slice, of which no two share rows.
        seed: Seed of the shuffle.

    Raises:
        ValueError: For slices that depend on the length of the data, for settings that leave open how many rows are
            read, for data that are not read as a stream, and for streams without a row in a slice.
    """
    _check(config, slices)
    builder = builder_of(config.dataset)
    refuse_shared_files(files_of(builder), {purpose: splits_of(purpose, spec) for purpose, spec in slices.items()})
    with reading(config.dataset):
        streams: dict[str, IterableDataset] = builder.as_streaming_dataset()
    sizes = dict.fromkeys(streams, UNKNOWN_SIZE)
    bounds = {purpose: row_ranges(purpose, spec, sizes)[0] for purpose, spec in slices.items()}
    splits = {}
    for purpose, (split, start, stop) in bounds.items():
        between = _between(streams[split], start, stop)
        rows = between.shuffle(seed=seed, buffer_size=BUFFER).take(_count(config, purpose))
        with reading(config.dataset):
            splits[purpose] = as_dataset(rows, purpose)
        if not len(splits[purpose]):
            raise ValueError(f"splits.{purpose}: '{slices[purpose]}' must not be empty, but the stream ends before it")
    return splits


def streaming_note(config: TaskConfig) -> str:
    """Says what was read of a stream."""
    return (
        f"the data were streamed: {_count(config, 'calibration'):,} rows of the calibration slice and "
        f"{_count(config, 'test'):,} of every other, or as many as there are, the first after a shuffle within a "
        f"buffer of {BUFFER:,}"
    )


def _check(config: TaskConfig, slices: Mapping[str, str]) -> None:
    """Refuses what a stream cannot serve."""
    lengths = [f"splits.{purpose} '{spec}'" for purpose, spec in slices.items() if takes_a_length(spec)]
    lengths += ["splits.shuffle"] if config.splits.shuffle else []
    if lengths:
        raise ValueError(
            f"a stream does not say how many rows it has, which {', '.join(lengths)} would take: name whole splits or "
            "row numbers, e.g. train[2000:] and train[:2000], or set dataset.streaming to false"
        )
    if several := [f"splits.{purpose} '{spec}'" for purpose, spec in slices.items() if "+" in spec]:
        raise ValueError(
            f"of a stream a purpose reads one slice, got {', '.join(several)}: name one, e.g. train[2000:]"
        )
    if config.evaluation_examples is None:
        raise ValueError(
            "task.evaluation_examples must say how many rows of a stream are read for validation and test, e.g. 1000"
        )
    if config.dataset.path == SAMPLE_TEXT or is_saved(config.dataset.path):
        raise ValueError(f"'{config.dataset.path}' lies on disk and is no stream: set dataset.streaming to false")


def _count(config: TaskConfig, purpose: str) -> int:
    """Gives the rows that are read for a purpose; for calibration those for refits as well."""
    if purpose != "calibration":
        return config.evaluation_examples or 0
    count, further = config.calibration_examples, config.refit_examples
    return count + (REFIT_SHARE * count if further is None else further)


def _between(stream: IterableDataset, start: int, stop: int) -> IterableDataset:
    """Takes the rows between two bounds of a stream; no shuffle moves a row over them, for the order of its files is
    then kept."""
    rest = stream.skip(start) if start else stream
    return rest if stop >= UNKNOWN_SIZE else rest.take(stop - start)
