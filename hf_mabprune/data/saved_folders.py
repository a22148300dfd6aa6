"""Folders that `Dataset.save_to_disk` and that of `DatasetDict` have written: Arrow files, read where they lie."""

import os
import re
from pathlib import Path

from datasets import Dataset, DatasetDict, load_from_disk

from hf_mabprune.config import DatasetConfig
from hf_mabprune.data.reading import reading

SEVERAL, ONE = "dataset_dict.json", "state.json"  # what tells them from other folders
ALONE = "train"  # split of a data set that says none


def is_saved(path: str) -> bool:
    """Tells whether a path is such a folder."""
    return any(Path(path, name).is_file() for name in (SEVERAL, ONE))


def read_saved(config: DatasetConfig) -> dict[str, Dataset]:
    """Reads such a folder: split -> all of its rows; a single data set is the split that it says it is, else `train`.

    Args:
        config: Data set whose path is the folder.

    Raises:
        ValueError: If it cannot be read, or for settings that mean nothing here.
    """
    for name in ("name", "data_files", "revision", "options"):
        if getattr(config, name):
            raise ValueError(
                f"dataset.{name} means nothing to '{config.path}', a folder of save_to_disk; leave it out, or save "
                "the data as parquet"
            )
    with reading(config):
        saved = load_from_disk(os.path.abspath(config.path))
    if isinstance(saved, DatasetDict):
        return {str(split): rows.with_format(None) for split, rows in saved.items()}
    own = re.match(r"\w+", str(saved.split or ""))
    return {own.group() if own else ALONE: saved.with_format(None)}
