"""Data handed over in Python: what users of `datasets`, pandas and torch have becomes a plain data set of columns, so
that what is checked is what is read; the rest is refused in one line."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, TypeAlias

import pandas as pd
import pyarrow as pa
import torch.utils.data
from datasets import Column, Dataset, DatasetInfo, IterableDataset, NamedSplit, concatenate_datasets

from hf_mabprune.data.columns import plain
from hf_mabprune.errors import OutsideError, kind_of, outside

Rows: TypeAlias = Iterable[Mapping[str, Any]]
Given: TypeAlias = Dataset | IterableDataset | pd.DataFrame | pa.Table | Mapping[str, Any] | Rows

MOST_ROWS = 200_000  # that are kept of what is made while it is read: streams, and transforms of rows
ROWS_AT_ONCE = 1000
REMEDY = "give a datasets.Dataset, a DataFrame, a dict of lists or a list of dicts"


def given_splits(**given: Given) -> dict[str, Dataset]:
    """Makes plain data sets of what is given for each purpose.

    Args:
        given: Purpose -> data, as `as_dataset` takes it.

    Raises:
        ValueError: If one and the same object serves two purposes, beside what `as_dataset` refuses.
    """
    for (one, first), (other, second) in combinations(given.items(), 2):
        same = isinstance(first, Dataset) and isinstance(second, Dataset) and first._fingerprint == second._fingerprint
        if first is not None and (first is second or same):
            raise OutsideError(
                f"{one} and {other} must share no examples, but are one and the same data; split them, e.g. by "
                "Dataset.train_test_split"
            )
    return {purpose: as_dataset(data, purpose) for purpose, data in given.items()}


def as_dataset(given: Given, purpose: str) -> Dataset:
    """Makes a plain data set: columns of values, without format or transform, in the rows and order that are given.

    Args:
        given: A `Dataset` of any format, an `IterableDataset`, a table of pandas, pyarrow or polars, a dict of
            columns, rows as dicts (a list, a generator, a data set of torch). A transform of rows is read once.
        purpose: What it is for, for messages.

    Raises:
        ValueError: For anything else, for what cannot be made into columns, and for streams and transforms of more
            than `MOST_ROWS` rows.
    """
    with outside(f"the data for {purpose} cannot be used", REMEDY):
        dataset = _plain_dataset(given)
        return Dataset(dataset.data, dataset.info, NamedSplit(purpose), dataset._indices)


def _plain_dataset(given: Any) -> Dataset:
    """Makes the data set, by the kind of what is given."""
    if isinstance(given, Dataset):
        return _transformed(given) if given.format["type"] == "custom" else given.with_format(None)
    if isinstance(given, IterableDataset):
        return _streamed(given)
    if isinstance(given, pd.DataFrame):
        return _of_table(pa.Table.from_pandas(given.rename(columns=str), preserve_index=False))
    if hasattr(given, "__arrow_c_stream__") and not isinstance(given, pd.Series):
        return _of_table(pa.table(given))
    if isinstance(given, Mapping):
        return _of_columns(given)
    if given is None or isinstance(given, (str, bytes, Path, Column, pd.Series, torch.utils.data.DataLoader)):
        raise ValueError(_what_instead(given))
    if isinstance(given, torch.utils.data.Dataset) and hasattr(given, "__len__"):
        return _of_rows(given[row] for row in range(len(given)))
    if isinstance(given, Iterable):
        return _of_rows(given)
    raise ValueError(_what_instead(given))


def _what_instead(given: Any) -> str:
    """Says what is wrong with what is no data set."""
    if isinstance(given, (str, Path)):
        return f"a text names no data here, got {str(given)!r}: load them first (datasets.load_dataset)"
    if isinstance(given, torch.utils.data.DataLoader):
        return "a DataLoader gives batches, not rows: give its dataset"
    return f"got {kind_of(given)}, of no columns"


def _of_columns(columns: Mapping[str, Any]) -> Dataset:
    """Makes a data set of a dict of columns; what is a dict of data sets is refused."""
    for name, values in columns.items():
        if isinstance(values, (Dataset, IterableDataset, pd.DataFrame)):
            raise ValueError(f"got several splits, {', '.join(map(str, columns))}: name one, e.g. data[{name!r}]")
        if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Iterable):
            raise ValueError(f"column '{name}' must be a list of values, got {type(values).__name__}")
    return Dataset.from_dict({str(name): _as_sequence(values) for name, values in columns.items()})


def _as_sequence(values: Iterable[Any]) -> Any:
    """Gives a column as something with a length."""
    if isinstance(values, (pd.Series, pd.Index)):
        return pa.array(values, from_pandas=True)
    return values if hasattr(values, "__len__") and not isinstance(values, (set, frozenset)) else list(values)


def _of_rows(rows: Iterable[Any]) -> Dataset:
    """Makes a data set of rows; one that lacks a column of the others has no value there."""
    kept = _limited(rows, lambda _: 1)
    for number, row in enumerate(kept):
        if not isinstance(row, Mapping):
            raise ValueError(f"rows must be dicts, column -> value, got {type(row).__name__} as row {number}")
    names = dict.fromkeys(name for row in kept for name in row)
    return Dataset.from_dict({str(name): [row.get(name) for row in kept] for name in names})


def _streamed(given: IterableDataset) -> Dataset:
    """Reads a stream to its end."""
    tables = _limited(given.with_format("arrow").iter(ROWS_AT_ONCE), lambda table: table.num_rows)
    if not tables:
        return Dataset.from_dict({})
    return _of_table(pa.concat_tables(tables, promote_options="default"), given.features)


def _transformed(given: Dataset) -> Dataset:
    """Reads what a transform (`with_transform`, `set_transform`) makes of the rows, once."""
    if len(given) > MOST_ROWS:
        raise ValueError(
            f"at most {MOST_ROWS:,} rows go through a transform here, got {len(given):,}; select some, or make "
            "columns of what the transform gives (Dataset.map)"
        )
    starts = range(0, len(given), ROWS_AT_ONCE)
    parts = [_of_columns(given[start : start + ROWS_AT_ONCE]) for start in starts]
    return concatenate_datasets(parts) if parts else given.with_format(None)


def _of_table(table: pa.Table, features: Any = None) -> Dataset:
    """Makes a data set of a table, its values in their plainest types."""
    twice = sorted({name for name in table.column_names if table.column_names.count(name) > 1})
    if twice:
        raise ValueError(f"columns must have different names, got '{twice[0]}' twice")
    table = pa.table({name: plain(table.column(name)) for name in table.column_names})
    return Dataset(table, info=DatasetInfo(features=features))


def _limited(parts: Iterable[Any], rows_of: Callable[[Any], int]) -> list[Any]:
    """Reads what is made while it is read to its end, or refuses it once it is too long."""
    kept, rows = [], 0
    for part in parts:
        kept.append(part)
        rows += rows_of(part)
        if rows > MOST_ROWS and not isinstance(parts, Sequence):
            raise ValueError(f"a stream must end within {MOST_ROWS:,} rows; take some of it, e.g. data.take(2000)")
    return kept
