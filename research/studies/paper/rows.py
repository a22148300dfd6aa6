"""The cells of the study: one row for each figure that was measured, and a store that a killed run goes on from.

A unit is what a process computes at one go (a split of a table, a seed of a deep setting); its rows are written at
once or not at all. When all units are there, `Store.collect` puts them into one file. `add_results` adds the finished
units of a store, whether or not the run is over, to the small file of all results.
"""

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import pandas as pd

from hf_mabprune.runtime.files import write_atomically

CLASSIFICATION, REGRESSION, DEEP = SUITES = ("classification", "regression", "deep")
LOSS, KL, NO_REWARD = "loss", "kl", ""
DENSE = "dense"  # the method that removes nothing
PROTOCOL = "protocol"  # in the settings of a store
TABLES = "tables"  # beside `DEEP`: the two parts of the study, with a protocol each
CELLS, SECONDS, SETTINGS, UNITS = "cells.parquet", "seconds.parquet", "settings.json", "units"
RESULTS = Path(__file__).with_name("results.parquet")  # what the repository holds
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
        (self.folder / UNITS).mkdir(parents=True, exist_ok=True)
        path = self.folder / SETTINGS
        if path.exists():
            check_settings("cells", json.loads(path.read_text(encoding="utf-8")), as_stored(settings), str(path))
        else:
            write_atomically(path, (json.dumps(settings, indent=1, sort_keys=True) + "\n").encode())

    def _path(self, unit: str) -> Path:
        return self.folder / UNITS / f"{unit.replace('/', '--')}.parquet"

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
        return _read((self._path(unit) for unit in units), self.key)

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
    """Reads all finished units of a store, whether or not its run is over; `attrs` holds the settings of the store.

    Raises:
        OSError: If the folder is no store, or has no finished unit.
        ValueError: If two rows have the same key.
    """
    folder = Path(folder)
    settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    paths = sorted((folder / UNITS).glob("*.parquet"))
    if not paths:
        raise FileNotFoundError(f"{folder / UNITS} has no finished unit yet")
    rows = _read(paths, key)
    rows.attrs = settings
    return rows


def as_stored(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Gives settings as they come back from a file."""
    return dict(json.loads(json.dumps(settings)))


def check_settings(what: str, stored: Mapping[Any, Any], own: Mapping[Any, Any], path: str) -> None:
    """Compares the settings under which rows were made with those that more are made under.

    Args:
        what: What the rows are of, for the error.
        stored, own: Settings, as files hold them.
        path: Where the stored ones come from.

    Raises:
        ValueError: If they differ.
    """
    names = sorted(name for name in {*stored, *own} if stored.get(name) != own.get(name))
    if names:
        raise ValueError(
            f"{path}: {what} were made under other settings there, they differ in {', '.join(names)}; rows of both "
            "cannot stand side by side: give another place, or begin anew"
        )


def add_results(runs: Sequence[pd.DataFrame], path: str | Path) -> int:
    """Adds the cells of runs to one small file, which is made where there is none.

    Args:
        runs: Rows as `read_cells` gives them.
        path: Parquet file; figures are rounded to what the page of the study shows and a digit more. Its `attrs` hold
            the settings of the parts, `TABLES` and `DEEP`.

    Returns:
        Number of the cells that were not there before. What was there stays, its time taken too.

    Raises:
        ValueError: If the rows of a part were made under different settings, a cell was measured twice and came out
            otherwise, or a deep setting has more than one base network.
    """
    path = Path(path)
    held = read_results(path) if path.is_file() else pd.DataFrame(columns=[field.name for field in fields(Row)])
    settings: dict[Any, Any] = dict(held.attrs)
    rows = _small(held)
    for run in runs:
        part = DEEP if set(run["suite"]) == {DEEP} else TABLES
        check_settings(f"cells of {part}", settings.setdefault(part, dict(run.attrs)), run.attrs, str(path))
        rows = _joined(rows, _small(run))
    dense = rows[rows["suite"] == DEEP].groupby("setting", observed=True)["dense_score"].nunique()
    if several := sorted(dense.index[dense > 1]):
        raise ValueError(f"draws of {', '.join(several)} cut different base networks: take those of one run")
    rows = rows.sort_values(KEY, ignore_index=True)
    rows.attrs = settings
    stored = rows.astype({column: "float32" for column in FIGURES} | {column: "category" for column in NAMES})
    stored.attrs = settings
    write_atomically(path, parquet_bytes(stored))
    return len(rows) - len(held)


def _small(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows with figures as the file of results holds them."""
    wide = {column: "float64" for column in FIGURES} | {column: "str" for column in NAMES}
    small = rows.astype(wide).round({**dict.fromkeys(FIGURES, 4), TIME: 3})
    small.attrs = {}
    return small


def _joined(held: pd.DataFrame, more: pd.DataFrame) -> pd.DataFrame:
    """Rows of both, each once; raises ValueError where a cell differs in more than the time taken."""
    if not len(held):
        return more
    both = held.merge(more, on=KEY, suffixes=("", " again"))
    for name in (field.name for field in fields(Row) if field.name not in (*KEY, TIME)):
        first, second = both[name], both[f"{name} again"]
        other = (first != second) & ~(first.isna() & second.isna())
        if other.any():
            cell = both.loc[other].iloc[0]
            raise ValueError(
                f"the cell {cell[KEY].to_dict()} has a {name} of {cell[name]} and one of {cell[name + ' again']}: "
                "results of different machines or code cannot stand side by side"
            )
    known = pd.MultiIndex.from_frame(held[KEY])
    fresh = more[~pd.MultiIndex.from_frame(more[KEY]).isin(known)]
    return pd.concat([held, fresh], ignore_index=True)


def read_results(path: str | Path) -> pd.DataFrame:
    """Reads what `add_results` has written; `attrs` holds the settings of the parts."""
    stored = pd.read_parquet(path)
    rows = _small(stored)
    rows.attrs = dict(stored.attrs)
    return rows


def _read(paths: Iterable[Path], key: Sequence[str]) -> pd.DataFrame:
    """Reads units, in the order of their keys; raises ValueError if two rows have the same."""
    rows = pd.concat([pd.read_parquet(path) for path in paths], ignore_index=True)
    if (twice := rows.duplicated(list(key))).any():
        raise ValueError(f"two rows have the key {rows.loc[twice, list(key)].iloc[0].to_dict()}")
    return rows.sort_values(list(key), ignore_index=True)


def parquet_bytes(frame: pd.DataFrame) -> bytes:
    """Gives a frame as the bytes of a parquet file."""
    content = io.BytesIO()
    frame.to_parquet(content, index=False, compression="zstd")
    return content.getvalue()
