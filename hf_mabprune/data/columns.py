"""Columns of a data set: found by their role, read as Arrow, refused where values are missing.

Symbols: N rows.
"""

import re
from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from hf_mabprune.errors import outside

LIKE_DATA = re.compile(r"[-+]?\d[\d.,]*|.*[;|\t].*")  # no name that anybody gives a column


class RowError(ValueError):
    """Something is wrong with one row.

    Args:
        message: What is wrong; `{row}` stands for the number of the row.
        row: Number of the row.
    """

    def __init__(self, message: str, row: int) -> None:
        super().__init__(message.replace("{row}", str(row)))
        self.message, self.row = message, row


def column_of(dataset: Dataset, column: str) -> pa.ChunkedArray:
    """Gives one column of a data set, [N], as Arrow; a selection of rows is respected."""
    return plain(dataset.select_columns([column]).with_format("arrow")[:].column(column))


def plain(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Gives values in the plainest type that holds them: categories as what they stand for, texts as strings."""
    if pa.types.is_dictionary(values.type):
        return values.cast(values.type.value_type)
    if pa.types.is_run_end_encoded(values.type):
        return pa.chunked_array([pc.run_end_decode(chunk) for chunk in values.chunks], values.type.value_type)
    return values.cast(pa.large_string()) if values.type == pa.string_view() else values


def full_column(dataset: Dataset, column: str, split: str) -> pa.ChunkedArray:
    """Gives one column of a data set, [N], as Arrow, in which every row has a value of the same kind.

    Args:
        dataset: Data set that has the column.
        column: Name of the column.
        split: Name of the split, for messages.

    Raises:
        ValueError: If a value is missing, of another kind, or no text in UTF-8; the message names the first row, where
            there is one.
    """
    where = f"split '{split}', column '{column}'"
    with outside(where):
        values = column_of(dataset, column)
    if values.null_count:
        row = int(np.flatnonzero(values.is_null().to_numpy())[0])
        read_as_missing = (
            "; if NA, null or None is a text in it: task.dataset.options: {keep_default_na: false}"
            if dataset.builder_name == "csv"
            else ""
        )
        raise ValueError(f"{where}: no value in row {row}; remove such rows{read_as_missing}")
    if type(dataset.features[column]).__name__ == "Json":  # what `datasets` makes of values of several kinds
        kinds = [type(value).__name__ for value in dataset[column]]
        row = next((row for row, kind in enumerate(kinds) if kind != kinds[0]), 0)
        raise ValueError(
            f"{where}: all values must be of one kind, got {kinds[0]} in row 0 and {kinds[row]} in row {row}; "
            "convert them"
        )
    if is_text(values.type):
        _refuse_broken_texts(values, where)
    return values


def is_text(kind: pa.DataType) -> bool:
    """Tells whether values of a type are texts."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def is_list(kind: pa.DataType) -> bool:
    """Tells whether values of a type are lists."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _refuse_broken_texts(values: pa.ChunkedArray, where: str) -> None:
    """Refuses bytes that are no UTF-8, which files of columns can hold under the name of texts."""
    try:
        values.validate(full=True)
    except pa.ArrowInvalid:
        for row, value in enumerate(values):
            try:
                value.as_py()
            except UnicodeDecodeError as error:
                raise ValueError(f"{where}: the text in row {row} is no UTF-8; save it again, or remove it") from error
        raise


def with_fields(dataset: Dataset, paths: Iterable[str]) -> Dataset:
    """Makes columns of the fields that paths lead to: `answers.text` of a column of mappings, `answers.text.0` of the
    first item of a list in it. What is no such path stays for others to refuse.

    Args:
        dataset: Data set that has the columns.
        paths: Names of columns, or paths.
    """
    wanted, unfolded = list(paths), set()
    for path in wanted:
        while path not in dataset.column_names:
            column = max((name for name in dataset.column_names if path.startswith(f"{name}.")), key=len, default="")
            parts = _parts(dataset, column, path.removeprefix(f"{column}.").split(".")[0]) if column else {}
            if not parts:
                break
            for name, values in parts.items():
                dataset = dataset.add_column(name, values)
            unfolded.add(column)
    return dataset.remove_columns(sorted(unfolded.difference(wanted)))


def _parts(dataset: Dataset, column: str, step: str) -> dict[str, pa.ChunkedArray]:
    """Gives what a column holds one step further, name -> values: all fields of mappings, or one item of each list;
    nothing where there is no such step."""
    values = column_of(dataset, column)
    if pa.types.is_struct(values.type) and values.type.get_field_index(step) >= 0:
        fields = {f"{column}.{field.name}": pc.struct_field(values, field.name) for field in values.type}
        return {name: field for name, field in fields.items() if name not in dataset.column_names}
    if is_list(values.type) and step.isdecimal():
        long_enough = pc.greater(pc.list_value_length(values), int(step))
        items = pc.if_else(pc.fill_null(long_enough, False), values, pa.scalar(None, values.type))
        return {f"{column}.{step}": pc.list_element(items, int(step))}
    return {}


def columns_in_words(dataset: Dataset) -> str:
    """Lists the columns of a data set for a message, with what may be wrong with a CSV file whose names look odd."""
    names = ", ".join(dataset.column_names)
    if dataset.builder_name == "csv" and any(LIKE_DATA.fullmatch(name) for name in dataset.column_names):
        return (
            f"{names}; of a file with another separator, or without a line of names: task.dataset.options: "
            "{sep: ';'} or {names: [text, label]}"
        )
    return names


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
        raise ValueError(f"no column '{asked}' (role {role}). Its columns: {columns_in_words(dataset)}")
    return present[0]
