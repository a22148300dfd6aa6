"""The cells of the study: one row for each figure that was measured, and a store that a killed run goes on from.

A unit is what a process computes at one go (a split of a table, a seed of a deep setting); its rows are written at
once or not at all. When all units are there, `Store.collect` puts them into one file.
"""

import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from hf_mabprune.runtime.files import write_atomically

CLASSIFICATION, REGRESSION, DEEP = SUITES = ("classification", "regression", "deep")
LOSS, KL, NO_REWARD = "loss", "kl", ""
DENSE = "dense"  # the method that removes nothing
PROTOCOL = "protocol"  # in the settings of a store
TABLES = "tables"  # beside `DEEP`: the two parts of the study, with a protocol each
CELLS, SECONDS, SETTINGS = "cells.parquet", "seconds.parquet", "settings.json"
TIME = "seconds"  # the one column that differs between runs
KEY = ["suite", "setting", "draw", "method", "reward", "variant", "fraction", "tuned"]
DIGITS = 6  # decimals that are kept of a figure
FIGURES = ["fraction", "score", "dense_score", "loss", "kl", TIME]
NAMES = ["suite", "setting", "method", "reward", "variant", "metric"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """Holds the figures of one cell, all of them on test data.

    Attributes:
        suite: One of `SUITES`.
        setting: Name of the table or of the deep setting.
        draw: Number of the split or of the pruning seed.
        method: Name of a policy, criterion or rival; `dense` for the network as it was trained.
        reward: What pulls measured, `loss` or `kl`; empty for a method without pulls.
        variant: What was done otherwise than the study does it, to see what that changes; empty for the study itself.
        fraction: Fraction of the hidden neurons that was removed; 0 for `dense` and for rivals.
        tuned: Whether the network was trained a little further afterwards, as all others were.
        metric: Name of what `score` is.
        score: Quality, the higher the better.
        dense_score: Quality of the dense network of the same setting and draw, not trained further.
        loss: Mean loss; not a number where there is none.
        kl: Mean divergence from the dense network, in nats; not a number where there is none.
        pulls: Number of pulls of the search.
        tokens: Tokens that the search sent forward, or rows of a table, or images; of `dense`, what its training sent
            forward, three times, since a step back costs about two more.
        seconds: Seconds of the search; of `dense` and of rivals, of training.
        chance: Whether the dense network is so near to chance that the setting cannot count.
    """

    suite: str
    setting: str
    draw: int
    method: str
    reward: str = NO_REWARD
    variant: str = ""
    fraction: float = 0.0
    tuned: bool = False
    metric: str
    score: float
    dense_score: float
    loss: float = float("nan")
    kl: float = float("nan")
    pulls: int = 0
    tokens: int = 0
    seconds: float = 0.0
    chance: bool = False

    def __post_init__(self) -> None:
        if self.suite not in SUITES:
            raise ValueError(f"suite must be one of {', '.join(SUITES)}, got '{self.suite}'")


class Store:
    """Keeps finished units in a folder. Several processes may add to one.

    Args:
        folder: Folder of the cells; it is made.
        settings: What the figures depend on; a folder is only gone on with under the same.
        key: Columns that tell rows apart, and that they are put in order by.

    Raises:
        ValueError: If the folder was begun under other settings.
    """

    def __init__(self, folder: str | Path, settings: dict[str, Any], key: Sequence[str] = KEY) -> None:
        self.folder, self.key = Path(folder), list(key)
        (self.folder / "units").mkdir(parents=True, exist_ok=True)
        path, text = self.folder / SETTINGS, json.dumps(settings, indent=1, sort_keys=True) + "\n"
        if not path.exists():
            write_atomically(path, text.encode())
        elif path.read_text(encoding="utf-8") != text:
            raise ValueError(f"{path} says that this folder was begun under other settings; give another one")

    def _path(self, unit: str) -> Path:
        return self.folder / "units" / f"{unit.replace('/', '--')}.parquet"

    def has(self, unit: str) -> bool:
        """Tells whether a unit is finished."""
        return self._path(unit).is_file()

    def add(self, unit: str, rows: Sequence[Any]) -> None:
        """Writes the rows of a finished unit, dataclasses of one type, with `TIME` among their fields."""
        write_atomically(self._path(unit), parquet_bytes(as_frame(rows)))

    def read(self, units: Iterable[str]) -> pd.DataFrame:
        """Reads the rows of units, in the order of their keys, whatever order they were finished in.

        Raises:
            ValueError: If two rows have the same key.
        """
        rows = pd.concat([pd.read_parquet(self._path(unit)) for unit in units], ignore_index=True)
        if (twice := rows.duplicated(self.key)).any():
            raise ValueError(f"two rows have the key {rows.loc[twice, self.key].iloc[0].to_dict()}")
        return rows.sort_values(self.key, ignore_index=True)

    def collect(self, units: Iterable[str]) -> pd.DataFrame:
        """Puts finished units into `cells.parquet`, which is the same for every run of the same settings.

        What differs between runs, the time taken, goes to `seconds.parquet`, beside the same keys.

        Returns:
            The rows, time included.
        """
        rows = self.read(units)
        write_atomically(self.folder / CELLS, parquet_bytes(rows.drop(columns=TIME)))
        write_atomically(self.folder / SECONDS, parquet_bytes(rows[[*self.key, TIME]]))
        return rows


def as_frame(rows: Sequence[Any]) -> pd.DataFrame:
    """Makes a frame of dataclasses, with a column for each field, figures rounded to `DIGITS` decimals."""
    return pd.DataFrame([asdict(row) for row in rows]).round(DIGITS)


def read_cells(folder: str | Path, key: Sequence[str] = KEY) -> pd.DataFrame:
    """Reads what `Store.collect` has written, the time taken included; `attrs` holds the settings of the store."""
    folder = Path(folder)
    cells, seconds = (pd.read_parquet(folder / name) for name in (CELLS, SECONDS))
    rows = cells.merge(seconds, on=list(key), how="left", validate="one_to_one")
    rows.attrs = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    return rows


def write_results(cells: Sequence[pd.DataFrame], path: str | Path) -> None:
    """Writes the cells of several runs into one small file.

    Args:
        cells: Rows as `read_cells` gives them.
        path: Parquet file; figures are rounded to what the page of the study shows and a digit more. Its `attrs` hold
            the protocols, of `TABLES` and of `DEEP`.

    Raises:
        ValueError: If two runs have the same cell, or tables were made by different protocols.
    """
    protocols: dict[str, Any] = {}
    for run in cells:
        part = DEEP if set(run["suite"]) == {DEEP} else TABLES
        if protocols.setdefault(part, run.attrs[PROTOCOL]) != run.attrs[PROTOCOL]:
            raise ValueError(f"the runs of {part} were made by different protocols, and cannot stand side by side")
    rows = pd.concat(cells, ignore_index=True).sort_values(KEY, ignore_index=True)
    if (twice := rows.duplicated(KEY)).any():
        raise ValueError(f"two runs have the cell {rows.loc[twice, KEY].iloc[0].to_dict()}")
    small = {column: "float32" for column in FIGURES} | {column: "category" for column in NAMES}
    rows = rows.round({**dict.fromkeys(FIGURES, 4), TIME: 3}).astype(small)
    rows.attrs.clear()  # the settings, where those of all runs are the same
    rows.attrs.update(protocols)
    write_atomically(Path(path), parquet_bytes(rows))


def read_results(path: str | Path) -> pd.DataFrame:
    """Reads what `write_results` has written; `attrs` holds the protocols."""
    stored = pd.read_parquet(path)
    wide = {column: "float64" for column in FIGURES} | {column: "str" for column in NAMES}
    rows = stored.astype(wide).round(dict.fromkeys(FIGURES, 4))
    rows.attrs.update(stored.attrs)
    return rows


def parquet_bytes(frame: pd.DataFrame) -> bytes:
    content = io.BytesIO()
    frame.to_parquet(content, index=False, compression="zstd")
    return content.getvalue()
