"""The runs of the study on deep settings: one unit for each draw of a setting, shared out over processes, resumable.

python -m research.studies.paper.deep.study --data runs/deep/data --out runs/deep --processes 16
python -m research.studies.paper.deep.study --data runs/deep/data --out runs/deep --networks
python -m research.studies.paper.deep.study --data runs/deep/data --out runs/deep --only setting=mnist,cifar10
python -m research.studies.paper.deep.study --data runs/deep/data --out runs/quick --quick

Data come from `research.studies.paper.deep.data`. Networks are trained first, each once, and kept: `--networks` stops
after that. A run that was stopped goes on with the same command. Where there is a GPU, all processes share it.
"""

import argparse
import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from hf_mabprune.progress import stage
from research.benchmarks.only import matching
from research.studies.paper.deep.cells import cells
from research.studies.paper.deep.data import ENCODER, SOURCES, prepare
from research.studies.paper.deep.networks import make_network
from research.studies.paper.deep.settings import FULL, QUICK, QUICK_SETTINGS, SETTINGS, Setting
from research.studies.paper.methods import Protocol
from research.studies.paper.rows import DEEP, PROTOCOL, Store
from research.studies.paper.sharing import shared_out

logger = logging.getLogger(__name__)

NETWORKS = "networks"  # folder of trained networks, below that of the study


@dataclass(frozen=True)
class Unit:
    """One draw of a setting.

    Attributes:
        setting: Name of the setting.
        draw: Number of the draw.
    """

    setting: str
    draw: int

    @property
    def name(self) -> str:
        """Names the unit in the store."""
        return f"{DEEP}/{self.setting}/{self.draw}"


@dataclass(frozen=True)
class DeepStudy:
    """Describes a run of the study.

    Attributes:
        data: Folder of all sources.
        out: Folder of cells and networks.
        protocol: How cells are made.
        settings: Settings, by name.
    """

    data: Path
    out: Path
    protocol: Protocol
    settings: dict[str, Setting]

    @classmethod
    def at(cls, data: Path, out: Path, quick: bool = False) -> "DeepStudy":
        """Gives the whole study, or the quick one of two settings."""
        chosen = {name: SETTINGS[name] for name in QUICK_SETTINGS} if quick else SETTINGS
        return cls(data, out, QUICK if quick else FULL, chosen)

    def units(self, only: Sequence[str] = ()) -> list[Unit]:
        """Lists the units, those of wide networks first, so that no process is left with one of them at the end.

        Args:
            only: Filters as those of `matching`, of `setting` and `draw`.

        Raises:
            ValueError: If a filter names what there is not.
        """
        made = [Unit(name, draw) for draw in range(self.protocol.splits) for name in self.settings]
        asked = matching(made, only, ("setting", "draw"))
        return sorted(asked, key=lambda unit: -self.settings[unit.setting].width)

    def store(self) -> Store:
        """Opens the store.

        Raises:
            ValueError: If it was begun under other settings.
        """
        described = {name: asdict(setting) for name, setting in self.settings.items()}
        sources = {setting.source: asdict(SOURCES[setting.source]) for setting in self.settings.values()}
        settings: dict[str, Any] = {PROTOCOL: asdict(self.protocol), "settings": described, "sources": sources}
        return Store(self.out, json.loads(json.dumps(settings)))

    def make_networks(self, names: Iterable[str], processes: int = 1) -> dict[str, dict[str, Any]]:
        """Trains the networks that are not there yet; gives their figures by setting.

        Args:
            names: Names of settings.
            processes: Processes that share the work.

        Raises:
            OSError: If data are missing.
        """
        asked = list(dict.fromkeys(names))
        for source in (self.settings[name].source for name in asked):
            if not SOURCES[source].kind:  # stories are made by the processes
                prepare(source, None, self.data)
        with stage("benchmark", len(asked), "networks") as work:
            made = {}
            for name, figures in shared_out([partial(self._network, name) for name in asked], processes):
                made[name] = figures
                work.count(len(made))
        return made

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
        self.make_networks((unit.setting for unit in todo), processes)
        with stage("benchmark", len(todo), "draws") as work:
            for _ in shared_out([partial(self._cells, store, unit) for unit in todo], processes):
                work.count(work.done + 1)
        return store.collect(unit.name for unit in units)

    def _network(self, name: str) -> tuple[str, dict[str, Any]]:
        setting = self.settings[name]
        prepare(setting.source, None, self.data)
        settings = setting.settings(self.data, self.out / NETWORKS, self.protocol, 0, {})
        return name, make_network(setting.network, settings, self.data / ENCODER)

    def _cells(self, store: Store, unit: Unit) -> None:
        setting = self.settings[unit.setting]
        settings = partial(setting.settings, self.data, self.out / NETWORKS, self.protocol, unit.draw)
        figures = self._network(unit.setting)[1]
        store.add(unit.name, cells(unit.setting, unit.draw, settings, figures, self.protocol))


def main() -> None:
    """Parses, runs, says what came of it."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that research.studies.paper.deep.data wrote")
    parser.add_argument("--out", type=Path, required=True, help="folder of cells and networks")
    parser.add_argument("--processes", type=int, default=1, help="that share the work")
    parser.add_argument("--quick", action="store_true", help="two settings, one draw: minutes")
    parser.add_argument("--only", nargs="+", default=[], help="cells, e.g. setting=mnist,one_fact draw=0")
    parser.add_argument("--networks", action="store_true", help="networks alone")
    options = parser.parse_args()
    study = DeepStudy.at(options.data, options.out, options.quick)
    units = study.units(options.only)
    if options.networks:
        made = study.make_networks((unit.setting for unit in units), options.processes)
        logger.info("%s", json.dumps(made, indent=1))
    else:
        rows = study.run(units, options.processes)
        logger.info("%d cells in %s", len(rows), options.out)


if __name__ == "__main__":
    main()
