"""The runs of the study on tables: one unit for each split of each table, shared out over processes, resumable.

A unit depends on nothing but its table, its number and the protocol, and is computed with one thread, so that cells do
not depend on how many processes there are, or on when any of them was stopped.
"""

import hashlib
import json
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import joblib
import pandas as pd
import torch
import transformers
from datasets.utils import disable_progress_bars
from threadpoolctl import threadpool_limits

from hf_mabprune.progress import SWITCH, stage
from research.benchmarks.only import matching
from research.studies.paper.cells import cells
from research.studies.paper.methods import Protocol
from research.studies.paper.rows import CLASSIFICATION, PROTOCOL, REGRESSION, Store
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
            for unit in self._done(store, todo, processes):
                work.count(work.done + 1, note=unit)
        return store.collect(unit.name for unit in units)

    def _done(self, store: Store, units: Sequence[Unit], processes: int) -> Iterator[str]:
        """Yields the name of every unit when it is done."""
        with joblib.parallel_config(backend="loky", inner_max_num_threads=1):
            pool = joblib.Parallel(n_jobs=min(processes, max(1, len(units))), return_as="generator_unordered")
            yield from pool(joblib.delayed(_make)(self, store, unit, os.getpid()) for unit in units)


def _make(study: Study, store: Store, unit: Unit, run: int) -> str:
    """Makes the cells of one unit and keeps them, in the process of the run or in one that it has started."""
    if run not in (os.getpid(), os.getppid()):
        raise RuntimeError("the run that this belongs to was killed")
    torch.set_num_threads(1)
    transformers.logging.disable_progress_bar()
    disable_progress_bars()
    table = read_table(study.data, unit.table)
    split = list(splits(table))[unit.draw]
    shown = os.environ.get(SWITCH)
    os.environ[SWITCH] = "off"  # of the stages of every search
    try:
        with warnings.catch_warnings(), threadpool_limits(1):
            warnings.simplefilter("ignore", UserWarning)  # that data are few
            store.add(unit.name, cells(table, unit.draw, split, study.out / NETWORKS, study.protocol))
    finally:
        os.environ.pop(SWITCH) if shown is None else os.environ.update({SWITCH: shown})
    return unit.name
