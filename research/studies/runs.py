"""Runs of a study: units that are shared out over processes, kept as they end, and added up over several days.

A unit depends on nothing but its name and the protocol, and is computed with one thread, so that rows do not depend on
how many processes there are, on when any of them was stopped, or on what else a run makes.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import pandas as pd

from research.benchmarks.only import matching
from research.studies.store import PROTOCOL, Store, Unit, as_stored

NETWORKS = "networks"  # folder of trained networks, below that of the study
VERSION = "version"  # in the settings of a store
Each = TypeVar("Each", bound=Unit)


@dataclass(frozen=True)
class Runs(ABC, Generic[Each]):
    """Describes a run of a study, or of one part of it.

    Attributes:
        data: Folder of the data.
        out: Folder of rows and networks.
        protocol: How rows are made, a dataclass.
        key: Columns that tell rows apart.
        asked_by: Fields that units can be asked for by.
        version: Of the code that makes rows: a change after which it makes others raises it, and rows of before are no
            longer added to.
    """

    data: Path
    out: Path
    protocol: Any
    key: ClassVar[Sequence[str]]
    asked_by: ClassVar[Sequence[str]]
    version: ClassVar[int] = 1

    @abstractmethod
    def all_units(self) -> list[Each]:
        """Lists all units, in the order in which they are begun."""

    @abstractmethod
    def inputs(self) -> dict[str, Any]:
        """Says what rows depend on beside the protocol."""

    @abstractmethod
    def cells(self, unit: Each) -> Sequence[Any]:
        """Makes the rows of a unit."""

    def gather(self, units: Sequence[Each]) -> None:
        """Brings together the data that units read.

        Raises:
            OSError: If data are missing.
        """

    def prepare(self, units: Sequence[Each], processes: int) -> None:
        """Makes what units share, from data that were gathered, before they are shared out."""

    def units(self, only: Sequence[str] = ()) -> list[Each]:
        """Lists the units that are asked for.

        Args:
            only: Filters as those of `matching`, of the fields `asked_by`.

        Raises:
            ValueError: If a filter names what there is not.
        """
        return matching(self.all_units(), only, self.asked_by)

    def settings(self) -> dict[str, Any]:
        """Says what rows depend on: the protocol, the inputs and the version of the code."""
        return as_stored({VERSION: self.version, PROTOCOL: asdict(self.protocol), **self.inputs()})

    def store(self) -> Store:
        """Opens the store.

        Raises:
            ValueError: If it was begun under other settings.
        """
        return Store(self.out, self.settings(), self.key)

    def run(self, units: Sequence[Each], processes: int = 1) -> pd.DataFrame:
        """Makes the rows of all units that are not there yet, and puts those of all units together.

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
