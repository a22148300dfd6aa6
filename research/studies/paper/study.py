"""The runs of the study on tables: one unit for each split of each table, shared out over processes, resumable.

A unit depends on nothing but its table, its number and the protocol, and is computed with one thread, so that cells do
not depend on how many processes there are, or on when any of them was stopped.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from hf_mabprune.progress import stage
from research.benchmarks.only import matching
from research.studies.paper.cells import cells
from research.studies.paper.methods import Protocol
from research.studies.paper.rows import CLASSIFICATION, PROTOCOL, REGRESSION, Store
from research.studies.paper.sharing import shared_out
from research.studies.paper.tables import FOLDS, INDEX, REPEATS, read_table, splits
from research.studies.paper.train import PASSES, RECIPE

NETWORKS = "networks"  # folder of trained networks, below that of the study
QUICK = Protocol(
    splits=2, fractions=(0.1, 0.5), pulls_per_arm=1.5, rounds=4, tuning_steps=20, variant_splits=1, tuning_rows=150
)
QUICK_TABLES = ("iris", "wine", "glass", "haberman", "servo", "cpu", "auto_mpg", "pollution")


@dataclass(frozen=True)
class Unit:
    """One split of a table.

    Attributes:
        suite: Suite of the table.
        table: Its name.
        draw: Number of the split.
        rows: Rows of the table, by which units are put in order.
    """

    suite: str
    table: str
    draw: int
    rows: int

    @property
    def name(self) -> str:
        """Names the unit in the store."""
        return f"{self.suite}/{self.table}/{self.draw}"


@dataclass(frozen=True)
class Study:
    """Describes a run of the study.

    Attributes:
        data: Folder of the tables, with their index.
        out: Folder of cells and networks.
        protocol: How cells are made.
        tables: Names of the tables; empty takes all of the index.
    """

    data: Path
    out: Path
    protocol: Protocol
    tables: Sequence[str] = ()

    def units(self, only: Sequence[str] = ()) -> list[Unit]:
        """Lists the units, those of large tables first, so that no process is left with one of them at the end.

        Args:
            only: Filters as those of `matching`, of `suite`, `table` and `draw`.

        Raises:
            ValueError: If a filter names what there is not.
            OSError: If there is no index of tables.
        """
        if not 1 <= self.protocol.splits <= FOLDS * REPEATS:
            raise ValueError(f"splits must be from 1 to {FOLDS * REPEATS}, got {self.protocol.splits}")
        index = json.loads((self.data / INDEX).read_text(encoding="utf-8"))
        entries = [entry for entry in index if not self.tables or entry["name"] in self.tables]
        made = [
            Unit(
                CLASSIFICATION if entry["task"] == "classification" else REGRESSION, entry["name"], draw, entry["rows"]
            )
            for entry in entries
            for draw in range(self.protocol.splits)
        ]
        return sorted(matching(made, only, ("suite", "table", "draw")), key=lambda unit: (-unit.rows, unit.name))

    def store(self) -> Store:
        """Opens the store.

        Raises:
            ValueError: If it was begun under other settings.
        """
        index = hashlib.sha256((self.data / INDEX).read_bytes()).hexdigest()
        settings: dict[str, Any] = {PROTOCOL: asdict(self.protocol), "recipe": asdict(RECIPE), "passes": PASSES}
        settings["tables"] = index
        return Store(self.out, json.loads(json.dumps(settings)))

    def run(self, units: Sequence[Unit], processes: int = 1) -> pd.DataFrame:
        """Makes the cells of all units that are not there yet, and puts those of all units together.

        Args:
            units: Units of `units`.
            processes: Processes that share the units, each with one thread.

        Returns:
            The rows, as `Store.collect` gives them.
        """
        store = self.store()
        todo = [unit for unit in units if not store.has(unit.name)]
        with stage("benchmark", len(units), "splits", len(units) - len(todo)) as work:
            for unit in shared_out([partial(self._make, store, unit) for unit in todo], processes):
                work.count(work.done + 1, note=unit)
        return store.collect(unit.name for unit in units)

    def _make(self, store: Store, unit: Unit) -> str:
        """Makes the cells of one unit and keeps them; gives its name."""
        table = read_table(self.data, unit.table)
        split = list(splits(table))[unit.draw]
        store.add(unit.name, cells(table, unit.draw, split, self.out / NETWORKS, self.protocol))
        return unit.name
