"""The tables of the study: read with their types, and split so that rows which repeat stay together.

Symbols: N rows.
"""

import json
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from datasets import Dataset
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold

from hf_mabprune.checkpoints.table_processor import TableProcessor

INDEX = "index.json"
LABEL = "label"
FOLDS, REPEATS = 5, 2  # ten splits: each row is in two test splits
BINS = 5  # of equal counts, by which numbers are stratified
FEW = "The least populated class"  # how a warning of scikit-learn begins, of classes with fewer rows than folds

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Table:
    """Holds one table.

    Attributes:
        name: Name in the index.
        classifies: Whether the target is a class; else it is a number.
        features: Columns of features, N rows.
        target: Names of classes, or numbers, [N].
        categorical: Features that are categories, whatever their type.
    """

    name: str
    classifies: bool
    features: pd.DataFrame
    target: NDArray[Any]
    categorical: Sequence[str]

    @property
    def classes(self) -> list[str]:
        """Lists the names of the classes."""
        return sorted(set(self.target.tolist()))

    def groups(self) -> Ints:
        """Gives rows of the same features the same number, [N]."""
        return np.asarray(self.features.groupby(list(self.features), dropna=False).ngroup(), dtype=np.int64)

    def strata(self) -> Ints:
        """Gives what splits are to have the same shares of, [N]: classes, or ranges of the number."""
        if self.classifies:
            return np.unique(self.target, return_inverse=True)[1]
        inner = np.quantile(self.target, np.arange(1, BINS) / BINS)
        return np.searchsorted(inner, self.target).astype(np.int64)


@dataclass(frozen=True)
class Split:
    """Says which rows serve for what: 60% for training, 20% for validation and 20% for test, or nearly."""

    train: Ints
    validation: Ints
    test: Ints


def read_table(folder: Path, name: str) -> Table:
    """Reads a table with the types that the index states.

    Args:
        folder: Folder with the files and index.json.
        name: Name of the table in the index.

    Raises:
        ValueError: If there is no such table, or the file is not what the index says.
    """
    index = {entry["name"]: entry for entry in json.loads((folder / INDEX).read_text(encoding="utf-8"))}
    if name not in index:
        raise ValueError(f"{folder / INDEX} has no table '{name}'; it has {', '.join(index)}")
    entry = index[name]
    rows = pd.read_csv(folder / entry["file"])
    features, classifies = rows[entry["feature_names"]], entry["task"] == "classification"
    found = len(rows), int(features.isna().sum().sum())
    if found != (entry["rows"], entry["missing_cells"]):
        raise ValueError(
            f"{entry['file']} must have {entry['rows']} rows and {entry['missing_cells']} missing cells, as the index "
            f"says, got {found[0]} and {found[1]}"
        )
    target = rows[entry["target"]].astype(str if classifies else float).to_numpy()
    return Table(name, classifies, features, target.astype(object) if classifies else target, entry["categorical"])


def splits(table: Table, seed: int = 0) -> Iterator[Split]:
    """Makes ten splits of a table, stratified, rows of the same features on one side.

    Args:
        table: Table to split.
        seed: Seed of all of them.
    """
    strata, groups = table.strata(), table.groups()
    for repeat in range(REPEATS):
        for rest, test in _folds(strata, groups, FOLDS, REPEATS * seed + repeat):
            train, validation = next(_folds(strata[rest], groups[rest], FOLDS - 1, seed))
            yield Split(rest[train], rest[validation], test)


def _folds(strata: Ints, groups: Ints, count: int, seed: int) -> Iterator[tuple[Ints, Ints]]:
    """Gives the rows of all other folds, and of the fold, for each."""
    folds = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", FEW, UserWarning)
        yield from folds.split(strata, strata, groups)


def data_sets(table: Table, split: Split) -> dict[str, Dataset]:
    """Makes the data sets of a split: features, and `label`, a number less its mean over its deviation in training.

    Args:
        table: Table.
        split: One of its splits.
    """
    label = table.target
    if not table.classifies:
        seen = label[split.train]
        label = (label - seen.mean()) / seen.std()
    rows = table.features.assign(**{LABEL: label})
    parts = {"train": split.train, "validation": split.validation, "test": split.test}
    return {name: Dataset.from_pandas(rows.iloc[index], preserve_index=False) for name, index in parts.items()}


def processor_of(table: Table, split: Split) -> TableProcessor:
    """Fits the processor of a split on its training rows."""
    return TableProcessor.fit(table.features.iloc[split.train], table.categorical)
