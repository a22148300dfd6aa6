"""Figures of a study as they are made: units that are kept as they end, so that a killed run goes on from them.

A unit is what a process computes at one go; its rows are written at once or not at all. When all units are there,
`Store.collect` puts them into one file.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pandas as pd

from hf_mabprune.runtime.files import write_atomically
from research.parquet import write_parquet
from research.studies.sharing import run_all

TIME = "seconds"  # the one column that differs between runs
CELLS, SECONDS, SETTINGS, UNITS = "cells.parquet", "seconds.parquet", "settings.json", "units"
PROTOCOL = "protocol"  # in the settings
DIGITS = 6  # decimals that are kept of a figure


class Unit(Protocol):
    """What a process computes at one go."""

    @property
    def name(self) -> str:
        """Names the unit in the store."""


Some = TypeVar("Some", bound=Unit)


class Store:
    """Keeps finished units in a folder. Several processes may add to one.

    Args:
        folder: Folder of the cells; it is made.
        settings: What the figures depend on; a folder is only gone on with under the same.
        key: Columns that tell rows apart, and that they are put in order by.

    Raises:
        ValueError: If the folder was begun under other settings.
    """

    def __init__(self, folder: str | Path, settings: dict[str, Any], key: Sequence[str]) -> None:
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
        write_parquet(self._path(unit), as_frame(rows))

    def fill(
        self, units: Sequence[Some], make: Callable[[Some], Sequence[Any]], processes: int, noun: str
    ) -> pd.DataFrame:
        """Makes the units that are not there yet, and puts all of them together.

        Args:
            units: Units of the run.
            make: Makes the rows of one, in whatever process.
            processes: Processes that share the units, each with one thread.
            noun: What progress calls them.

        Returns:
            The rows, as `collect` gives them.
        """
        todo = [unit for unit in units if not self.has(unit.name)]
        run_all([partial(self._made, make, unit) for unit in todo], processes, noun, len(units) - len(todo))
        return self.collect(unit.name for unit in units)

    def _made(self, make: Callable[[Some], Sequence[Any]], unit: Some) -> str:
        self.add(unit.name, make(unit))
        return unit.name

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
        write_parquet(self.folder / CELLS, rows.drop(columns=TIME))
        write_parquet(self.folder / SECONDS, rows[[*self.key, TIME]])
        return rows


def as_frame(rows: Sequence[Any]) -> pd.DataFrame:
    """Makes a frame of dataclasses, with a column for each field, figures rounded to `DIGITS` decimals."""
    return pd.DataFrame([asdict(row) for row in rows]).round(DIGITS)


def read_cells(folder: str | Path, key: Sequence[str]) -> pd.DataFrame:
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


def stores(folder: str | Path) -> list[Path]:
    """Lists the stores of a run: its folder, or those in it.

    Raises:
        OSError: If there are none.
    """
    found = sorted(path.parent for depth in ("", "*/") for path in Path(folder).glob(f"{depth}{SETTINGS}"))
    if not found:
        raise FileNotFoundError(f"{folder} has no {SETTINGS}, nor has a folder in it: no study was begun there")
    return found


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


def _read(paths: Iterable[Path], key: Sequence[str]) -> pd.DataFrame:
    """Reads units, in the order of their keys; raises ValueError if two rows have the same."""
    rows = pd.concat([pd.read_parquet(path) for path in paths], ignore_index=True)
    if (twice := rows.duplicated(list(key))).any():
        raise ValueError(f"two rows have the key {rows.loc[twice, list(key)].iloc[0].to_dict()}")
    return rows.sort_values(list(key), ignore_index=True)
