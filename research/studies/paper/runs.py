"""Runs of the study: units that are shared out over processes, kept as they end, and added up over several days.

A unit depends on nothing but its setting, its draw and the protocol, and is computed with one thread, so that cells do
not depend on how many processes there are, on when any of them was stopped, or on what else a run makes.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd

from research.benchmarks.only import matching
from research.studies.paper.methods import Protocol
from research.studies.paper.rows import KEY, PROTOCOL, Row, read_results
from research.studies.store import Store, as_stored, check_settings

NETWORKS = "networks"  # folder of trained networks, below that of the study
VERSION = "version"
ASKED_BY = ("suite", "setting", "draw")  # fields of a unit


@dataclass(frozen=True)
class Unit:
    """What a process computes at one go: a split of a table, or a draw of a deep setting.

    Attributes:
        suite: Suite of the setting.
        setting: Name of the table or of the deep setting.
        draw: Number of the split or of the pruning seed.
        size: Rows of the table or neurons of a layer, by which units are put in order.
    """

    suite: str
    setting: str
    draw: int
    size: int

    @property
    def name(self) -> str:
        """Names the unit in the store."""
        return f"{self.suite}/{self.setting}/{self.draw}"


@dataclass(frozen=True)
class Runs(ABC):
    """Describes a run of one part of the study.

    Attributes:
        data: Folder of the data.
        out: Folder of cells and networks.
        protocol: How cells are made.
        part: Name of the part.
        version: Of the code that makes rows: a change after which it makes others raises it, and rows of before are no
            longer added to.
    """

    data: Path
    out: Path
    protocol: Protocol
    part: ClassVar[str]
    version: ClassVar[int]

    @abstractmethod
    def all_units(self) -> list[Unit]:
        """Lists all units of the part."""

    @abstractmethod
    def inputs(self) -> dict[str, Any]:
        """Says what rows depend on beside the protocol."""

    @abstractmethod
    def cells(self, unit: Unit) -> list[Row]:
        """Makes the rows of a unit."""

    def gather(self, units: Sequence[Unit]) -> None:  # noqa: B027
        """Brings together the data that units read.

        Raises:
            OSError: If data are missing.
        """

    def prepare(self, units: Sequence[Unit], processes: int) -> None:  # noqa: B027
        """Makes what units share, from data that were gathered, before they are shared out."""

    def units(self, only: Sequence[str] = ()) -> list[Unit]:
        """Lists the units, large ones first, so that no process is left with one of them at the end.

        Args:
            only: Filters as those of `matching`, of the fields `ASKED_BY`.

        Raises:
            ValueError: If a filter names what there is not.
        """
        asked = matching(self.all_units(), only, ASKED_BY)
        return sorted(asked, key=lambda unit: (-unit.size, unit.draw, unit.name))

    def settings(self) -> dict[str, Any]:
        """Says what rows depend on: the protocol, the inputs and the version of the code."""
        return as_stored({VERSION: self.version, PROTOCOL: asdict(self.protocol), **self.inputs()})

    def store(self) -> Store:
        """Opens the store.

        Raises:
            ValueError: If it was begun under other settings.
        """
        return Store(self.out, self.settings(), KEY)

    def missing(self, units: Sequence[Unit], results: Path) -> list[Unit]:
        """Lists those of the units that a file of results does not hold.

        Args:
            units: Units of `units`.
            results: File as `rows.add_results` writes it; there may be none yet.

        Raises:
            ValueError: If rows of this part were made there under other settings or by other code.
        """
        if not results.is_file():
            return list(units)
        held = read_results(results)
        if self.part in held.attrs:
            check_settings(f"cells of {self.part}", held.attrs[self.part], self.settings(), str(results))
        made = set(held[list(ASKED_BY)].itertuples(index=False, name=None))
        return [unit for unit in units if (unit.suite, unit.setting, unit.draw) not in made]

    def run(self, units: Sequence[Unit], processes: int = 1) -> pd.DataFrame:
        """Makes the cells of all units that are not there yet, and puts those of all units together.

        Args:
            units: Units of `units`.
            processes: Processes that share the units, each with one thread.

        Returns:
            The rows, as `Store.collect` gives them.
        """
        store = self.store()
        self.gather(units)
        self.prepare([unit for unit in units if not store.has(unit.name)], processes)
        return store.fill(units, self.cells, processes, "units")
