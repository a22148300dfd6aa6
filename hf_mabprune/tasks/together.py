"""What the data sets of a run are to each other: rows that two of them share, and labels that one of them lacks.

Symbols: N rows, C classes of the head.
"""

import math
import warnings
from collections.abc import Mapping
from itertools import combinations

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from hf_mabprune.data.overlap import Hashes, repeated, row_hashes, same_rows, shared
from hf_mabprune.errors import in_words, one_line
from hf_mabprune.tasks.base import Task

TOO_MANY = 0.2  # of the rows of a split, beyond what chance explains
DOUBTFUL, SURELY_NOT = 1e-4, 1e-6  # chances at which what a split lacks is said, and refused
FEW = 5  # rows, of which the range says nothing
REMEDY = (
    "data may be sorted by label: shuffle the file, as task.splits.shuffle: true does before slicing, or take others"
)


def check_splits(task: Task, splits: Mapping[str, Dataset]) -> list[str]:
    """Checks each data set, and what they are to each other.

    Args:
        task: Task that they are for.
        splits: Purpose -> data.

    Returns:
        What to know of the figures; each is also given as a warning.

    Raises:
        ValueError: For a data set that does not suit the task, for two that hold the same rows, and for one of a
            single class where the others have more.
    """
    for split, dataset in splits.items():
        try:
            task.check(dataset, split)
        except Exception as error:
            own = isinstance(error, ValueError)
            raise ValueError(one_line(str(error)) if own else f"split '{split}': {in_words(error)}") from error
    return warned([*shared_rows(task, splits), *missing_labels(task, splits)])


def warned(notes: list[str]) -> list[str]:
    """Gives notes on what is read, after a warning of each."""
    for note in notes:
        warnings.warn(note, stacklevel=3)
    return notes


def shared_rows(task: Task, splits: Mapping[str, Dataset]) -> list[str]:
    """Says which data sets share many rows.

    Data of few different rows share them by nature: what a split repeats of itself is what two draws of the same data
    have in common, and is taken off.

    Args:
        task: Task that names the columns.
        splits: Purpose -> data, each checked.

    Raises:
        ValueError: If two hold the same rows, or one holds all of another.
    """
    found = []
    rows = {split: _hashes(task, dataset, split) for split, dataset in splits.items()}
    for (one, seen), (other, read) in combinations(rows.items(), 2):
        count, by_chance = shared(read, seen), max(repeated(seen), repeated(read))
        if count / len(read) - by_chance <= TOO_MANY:
            continue
        if same_rows(seen, read):
            raise ValueError(
                f"splits must not overlap, but {one} and {other} hold the same {len(read):,} rows; take other data "
                "for one of them"
            )
        if count == len(read):
            raise ValueError(
                f"splits must not overlap, but all {count:,} rows of {other} are in {one}, too; take other data for "
                "one of them"
            )
        found.append(
            f"{count:,} of the {len(read):,} rows of {other} are in {one}, too: figures on {other} are not of unseen "
            "data"
        )
    return found


def _hashes(task: Task, dataset: Dataset, split: str) -> Hashes:
    """Gives a number for what the task reads of each row, [N]."""
    columns = task.columns_read(dataset, split)
    flat = dataset if all(column in dataset.column_names for column in columns) else dataset.flatten()
    return row_hashes(flat, columns)


def missing_labels(task: Task, splits: Mapping[str, Dataset]) -> list[str]:
    """Says which data sets lack labels that the others, or the head, would let one expect: slices of sorted data do.

    Args:
        task: Task that knows the labels.
        splits: Purpose -> data, each checked.

    Raises:
        ValueError: If one has examples of a single class where the others have more.
    """
    targets = {split: task.targets(dataset, split) for split, dataset in splits.items()}
    known = {split: values for split, values in targets.items() if values is not None}
    if not task.predicts_classes:
        return _ranges_apart({split: values for split, values in known.items() if values.ndim == 1})
    return [text for split in known if (text := _missing_classes(task.classes, known, split))]


def _missing_classes(classes: int, targets: Mapping[str, NDArray[np.int64]], split: str) -> str | None:
    """Says how many classes a split lacks that it should have by their share in the other splits, or in the head where
    none has them.

    With shares p_c, a class is missing from N rows drawn at random with chance (1 - p_c)^N. These events are
    negatively associated (Dubhashi & Ranjan 1998), so that the Chernoff bound holds for their number m, of mean M:
    P(m or more) <= exp(m - M) (M / m)^m.
    """
    counts = {name: np.bincount(values, minlength=classes) for name, values in targets.items()}
    own, total = counts.pop(split), len(targets[split])
    others = np.sum(list(counts.values()), axis=0) if counts else np.zeros(classes)
    share = np.where(others > 0, others / max(1, others.sum()), 1 / classes)
    missing, mean = int((own == 0).sum()), float(((1 - share) ** total).sum())
    chance = 1.0
    if missing > mean:
        chance = math.exp(missing - mean + missing * math.log(max(mean, 1e-300) / missing))
    present = classes - missing
    alone = present == 1 and bool((others > 0).sum() > 1)  # which no metric can be read from
    if chance > DOUBTFUL and not alone:
        return None
    if alone and chance < SURELY_NOT:
        raise ValueError(
            f"split '{split}' has examples of a single class in {total:,} rows, where the others have "
            f"{int((others > 0).sum())}; {REMEDY}"
        )
    return f"split '{split}' has {present} of the {classes} classes in {total:,} rows; {REMEDY}"


def _ranges_apart(targets: Mapping[str, NDArray[np.float64]]) -> list[str]:
    """Says which splits have no number in the range of another."""
    ranges = {split: (float(values.min()), float(values.max())) for split, values in targets.items()}
    return [
        f"labels of {one}, {low:g} to {high:g}, and of {other}, {other_low:g} to {other_high:g}, have nothing in "
        f"common; {REMEDY}"
        for (one, (low, high)), (other, (other_low, other_high)) in combinations(ranges.items(), 2)
        if min(len(targets[one]), len(targets[other])) >= FEW and (high < other_low or other_high < low)
    ]
