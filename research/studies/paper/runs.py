"""Runs of a part of the study: what units of tables and of deep settings have in common."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from research.studies.paper.methods import Protocol
from research.studies.paper.rows import KEY, read_results
from research.studies.runs import Runs
from research.studies.store import check_settings


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
class Part(Runs[Unit]):
    """Describes a run of one part of the study; attributes as those of `Runs`.

    Attributes:
        part: Name of the part.
    """

    protocol: Protocol
    part: ClassVar[str]
    key: ClassVar[Sequence[str]] = KEY
    asked_by: ClassVar[Sequence[str]] = ("suite", "setting", "draw")

    @abstractmethod
    def every_unit(self) -> list[Unit]:
        """Lists all units, in any order."""

    def all_units(self) -> list[Unit]:
        """See `Runs.all_units`: large ones first, so that no process is left with one of them at the end."""
        return sorted(self.every_unit(), key=lambda unit: (-unit.size, unit.draw, unit.name))

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
        made = set(held[list(self.asked_by)].itertuples(index=False, name=None))
        return [unit for unit in units if (unit.suite, unit.setting, unit.draw) not in made]
