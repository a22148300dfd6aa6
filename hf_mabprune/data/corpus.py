"""Texts of files, whatever they are for: what a vocabulary is cut to."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from datasets import load_dataset

from hf_mabprune.errors import outside

LOADERS = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".csv": "csv", ".txt": "text"}
AT_ONCE = 1000  # rows, or lines


def check_texts(files: Sequence[str]) -> None:
    """Refuses files that are not there, before anything is loaded.

    Raises:
        FileNotFoundError: Naming the file.
    """
    for file in files:
        if not os.path.isfile(file):
            raise FileNotFoundError(
                f"prune.vocabulary.keep: no file '{file}'; paths are relative to {Path.cwd()}, and the calibration "
                "split is called calibration"
            )


def texts_of(file: str) -> Iterator[list[str]]:
    """Reads the texts of a file, some at a time: those of all columns, or lines, where its name says nothing else.

    Raises:
        OutsideError: If it cannot be read.
    """
    loader = LOADERS.get(Path(file).suffix.lower(), "text")
    options: dict[str, Any] = {"keep_linebreaks": True} if loader == "text" else {}
    with outside(f"prune.vocabulary.keep: {file} cannot be read"):
        rows = load_dataset(loader, data_files=file, split="train", streaming=True, **options)  # which caches nothing
        for columns in rows.iter(AT_ONCE):
            yield [text for values in columns.values() for text in _texts_in(values)]


def _texts_in(value: Any) -> Iterator[str]:
    """Gives the texts in a value, however deep."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _texts_in(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _texts_in(inner)
