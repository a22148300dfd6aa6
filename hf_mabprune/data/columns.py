"""Columns of a data set: found by their role, read as Arrow, refused where values are missing.

Symbols: N rows.
"""

import numpy as np
import pyarrow as pa
from datasets import Dataset


def column_of(dataset: Dataset, column: str) -> pa.ChunkedArray:
    """Gives one column of a data set, [N], as Arrow; a selection of rows is respected."""
    return dataset.select_columns([column]).with_format("arrow")[:].column(column)


def refuse_missing_values(values: pa.ChunkedArray, column: str, split: str) -> None:
    """Refuses a column with missing values.

    Args:
        values: Values of the column, [N].
        column: Name of the column, for the message.
        split: Name of the split, for the message.

    Raises:
        ValueError: If a value is missing; the message names the first row.
    """
    if values.null_count:
        row = int(np.flatnonzero(values.is_null().to_numpy())[0])
        raise ValueError(f"split '{split}', column '{column}': no value in row {row}; remove such rows")


def first_column(dataset: Dataset, role: str, columns: dict[str, str], usual: tuple[str, ...]) -> str:
    """Finds the column of a role: the one that was named, else the first of the usual ones that is there.

    Args:
        dataset: Data set that has the column.
        role: What the column is for, such as "label".
        columns: Role -> column, as far as the user named them.
        usual: Usual names, the preferred ones first.

    Raises:
        ValueError: If there is none.
    """
    candidates = [columns[role]] if role in columns else usual
    present = [name for name in candidates if name in dataset.column_names]
    if not present:
        asked = columns.get(role) or "' or '".join(usual)
        raise ValueError(f"no column '{asked}' (role {role}). Its columns: {', '.join(dataset.column_names)}")
    return present[0]
