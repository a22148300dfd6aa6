"""The study on deep settings: one unit for each draw of a setting.

Networks are trained first, each once, and kept. Where there is a GPU, all processes share it.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from hf_mabprune.config import PruneConfig
from research.studies.paper.deep.cells import cells
from research.studies.paper.deep.data import BASE, ENCODER, SOURCES, TEXTS, Source, prepare, prepare_encoder
from research.studies.paper.deep.networks import make_network
from research.studies.paper.deep.settings import FULL, QUICK, QUICK_SETTINGS, SETTINGS, Setting
from research.studies.paper.rows import DEEP, Row
from research.studies.paper.runs import Part, Unit
from research.studies.runs import NETWORKS
from research.studies.sharing import run_all

DATA = "data"  # folder of what units read, below that of the study


@dataclass(frozen=True)
class DeepStudy(Part):
    """Describes a run of the study on deep settings.

    Attributes:
        described: Settings, by name.
        base: Hub name or folder of the encoder that text settings start from.
    """

    part: ClassVar[str] = DEEP
    described: dict[str, Setting] = field(default_factory=lambda: SETTINGS)
    base: str = BASE

    @classmethod
    def at(cls, data: Path, out: Path, quick: bool = False, base: str = BASE) -> "DeepStudy":
        """Gives the whole study, or the quick one of two settings."""
        chosen = {name: SETTINGS[name] for name in QUICK_SETTINGS} if quick else SETTINGS
        return cls(data, out, QUICK if quick else FULL, chosen, base)

    def every_unit(self) -> list[Unit]:
        """See `Part.every_unit`."""
        draws = range(self.protocol.splits)
        return [Unit(DEEP, name, draw, setting.width) for name, setting in self.described.items() for draw in draws]

    def inputs(self) -> dict[str, Any]:
        """See `Runs.inputs`."""
        described = {name: asdict(setting) for name, setting in self.described.items()}
        sources = {setting.source: asdict(SOURCES[setting.source]) for setting in self.described.values()}
        return {"settings": described, "sources": sources}

    def gather(self, units: Sequence[Unit]) -> None:
        """See `Runs.gather`; stories are made where they are needed."""
        drawn = {self.described[unit.setting].source for unit in units if not self._source(unit.setting).kind}
        texts = set(TEXTS) if drawn & set(TEXTS) else set()
        for source in sorted(drawn | texts):
            prepare(source, self.data, self.out / DATA)
        if texts:  # the encoder keeps the tokens of all of them
            prepare_encoder(self.base, self.out / DATA)

    def prepare(self, units: Sequence[Unit], processes: int) -> None:
        """See `Runs.prepare`: trains the networks that are not there yet."""
        names = list(dict.fromkeys(unit.setting for unit in units))
        run_all([partial(self._trained, name) for name in names], processes, "networks")

    def cells(self, unit: Unit) -> list[Row]:
        """See `Runs.cells`."""
        settings = partial(self._settings, unit.setting, unit.draw)
        return cells(unit.setting, unit.draw, settings, self._network(unit.setting), self.protocol)

    def _source(self, name: str) -> Source:
        return SOURCES[self.described[name].source]

    def _settings(self, name: str, draw: int, search: dict[str, Any]) -> PruneConfig:
        networks = self.out / NETWORKS
        return self.described[name].settings(self.out / DATA, networks, self.protocol, draw, search)

    def _network(self, name: str) -> dict[str, Any]:
        prepare(self.described[name].source, self.data, self.out / DATA)
        network = self.described[name].network
        return make_network(network, self._settings(name, 0, {}), self.out / DATA / ENCODER)

    def _trained(self, name: str) -> str:
        self._network(name)
        return name
