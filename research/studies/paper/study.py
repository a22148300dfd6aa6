"""The study on tables: one unit for each split of each table."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from research.studies.paper.cells import cells
from research.studies.paper.methods import Protocol
from research.studies.paper.rows import CLASSIFICATION, REGRESSION, TABLES, Row
from research.studies.paper.runs import Part, Unit
from research.studies.paper.tables import FOLDS, INDEX, REPEATS, read_table, splits
from research.studies.paper.train import PASSES, RECIPE
from research.studies.runs import NETWORKS

QUICK = Protocol(
    splits=2, fractions=(0.1, 0.5), pulls_per_arm=1.5, rounds=4, tuning_steps=20, variant_splits=1, tuning_rows=150
)
QUICK_TABLES = ("iris", "wine", "glass", "haberman", "servo", "cpu", "auto_mpg", "pollution")


@dataclass(frozen=True)
class Study(Part):
    """Describes a run of the study on tables.

    Attributes:
        tables: Names of the tables; empty takes all of the index.
    """

    part: ClassVar[str] = TABLES
    tables: Sequence[str] = ()

    @classmethod
    def at(cls, data: Path, out: Path, quick: bool = False) -> "Study":
        """Gives the whole study, or the quick one of eight tables."""
        return cls(data, out, *((QUICK, QUICK_TABLES) if quick else (Protocol(),)))

    def every_unit(self) -> list[Unit]:
        """See `Part.every_unit`.

        Raises:
            ValueError: If there are not so many splits.
            OSError: If there is no index of tables.
        """
        if not 1 <= self.protocol.splits <= FOLDS * REPEATS:
            raise ValueError(f"splits must be from 1 to {FOLDS * REPEATS}, got {self.protocol.splits}")
        index = json.loads((self.data / INDEX).read_text(encoding="utf-8"))
        suites = {"classification": CLASSIFICATION, "regression": REGRESSION}
        return [
            Unit(suites[entry["task"]], entry["name"], draw, entry["rows"])
            for entry in index
            if not self.tables or entry["name"] in self.tables
            for draw in range(self.protocol.splits)
        ]

    def inputs(self) -> dict[str, Any]:
        """See `Runs.inputs`."""
        index = hashlib.sha256((self.data / INDEX).read_bytes()).hexdigest()
        return {"recipe": asdict(RECIPE), "passes": PASSES, "tables": index}

    def cells(self, unit: Unit) -> list[Row]:
        """See `Runs.cells`."""
        table = read_table(self.data, unit.setting)
        split = list(splits(table))[unit.draw]
        return cells(table, unit.draw, split, self.out / NETWORKS, self.protocol)
