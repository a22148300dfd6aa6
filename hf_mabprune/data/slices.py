"""Slices of a data set, such as train[:10%]: what they hold, and the promise that no two of them share a row."""

from collections.abc import Mapping
from itertools import combinations, product

from datasets import Dataset, NamedSplit, ReadInstruction, concatenate_datasets

from hf_mabprune.registry import nearest

UNKNOWN_SIZE = 10**9  # rows, beyond every bound that a slice is likely to name


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
        splits = splits_of(purpose, spec)
        if sizes is None and takes_a_length(spec):
            continue
        known = dict.fromkeys(splits, UNKNOWN_SIZE) if sizes is None else sizes
        ranges[purpose] = row_ranges(purpose, spec, known)
    for (one, one_parts), (other, other_parts) in combinations(ranges.items(), 2):
        for (split, start, stop), (other_split, other_start, other_stop) in product(one_parts, other_parts):
            shared = min(stop, other_stop) - max(start, other_start)
            if split == other_split and shared > 0:
                rows = f"{shared:,} rows" if sizes else "rows"
                raise ValueError(
                    f"splits must not overlap, but {one} '{slices[one]}' and {other} '{slices[other]}' share "
                    f"{rows} of '{split}'; slice them apart, e.g. {split}[2000:] and {split}[:2000]"
                )


def takes_a_length(spec: str) -> bool:
    """Tells whether the bounds of a slice depend on how many rows there are."""
    return "%" in spec or "-" in spec


def splits_of(purpose: str, spec: str) -> list[str]:
    """Names the splits that a slice reads."""
    return [part.split("[")[0] for part in _parsed(purpose, spec).to_spec().split("+")]


def _parsed(purpose: str, spec: str) -> ReadInstruction:
    """Reads a slice such as "train[:10%]", or refuses it by its purpose."""
    try:
        return ReadInstruction.from_spec(spec)
    except ValueError as error:
        raise ValueError(
            f"splits.{purpose}: '{spec}' is no slice ({error}); write e.g. train, train[2000:] or train[:10%]"
        ) from None


def row_ranges(purpose: str, spec: str, sizes: Mapping[str, int]) -> list[tuple[str, int, int]]:
    """Gives (split, start, stop) of each part of a slice, in row numbers.

    Args:
        purpose: What the slice is for, for messages.
        spec: The slice.
        sizes: Rows of each split of the source.

    Raises:
        ValueError: For a malformed slice, an unknown split and a slice without rows.
    """
    for split in (name for name in splits_of(purpose, spec) if name not in sizes):
        raise ValueError(
            f"splits.{purpose}: no split '{split}' in the data set.{nearest(split, sizes)} "
            f"Its splits: {', '.join(sizes)}"
        )
    parts = [(part.splitname, part.from_, part.to) for part in _parsed(purpose, spec).to_absolute(dict(sizes))]
    if not any(start < stop for _, start, stop in parts):
        rows = ", ".join(f"'{split}' has {sizes[split]:,} rows" for split, _, _ in parts)
        raise ValueError(f"splits.{purpose}: '{spec}' must not be empty, but it holds no row ({rows}); widen it")
    return parts


def cut_out(datasets: Mapping[str, Dataset], slices: Mapping[str, str]) -> dict[str, Dataset]:
    """Takes the rows of each slice.

    Args:
        datasets: Split -> all of its rows.
        slices: Purpose -> slice, checked.
    """
    sizes = {split: len(dataset) for split, dataset in datasets.items()}
    taken = {}
    for purpose, spec in slices.items():
        parts = row_ranges(purpose, spec, sizes)
        rows = concatenate_datasets([datasets[split].select(range(start, stop)) for split, start, stop in parts])
        taken[purpose] = Dataset(rows.data, rows.info, NamedSplit(spec), rows._indices)
    return taken
