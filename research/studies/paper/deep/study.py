"""The study on deep settings: one unit for each draw of a setting.

python -m research.studies.paper.deep.study --data runs/deep/data --out runs/deep --processes 16
python -m research.studies.paper.deep.study --data runs/deep/data --out runs/deep --networks
python -m research.studies.paper.deep.study --data runs/deep/data --out runs/deep --only setting=mnist,cifar10 draw=0
python -m research.studies.paper.deep.study --data runs/deep/data --out runs/deep --missing
python -m research.studies.paper.deep.study --data runs/deep/data --out runs/quick --quick

Data come from `research.studies.paper.deep.data`. Networks are trained first, each once, and kept: `--networks` stops
after that. A run that was stopped goes on with the same command; `--missing` makes what the results in the repository
do not hold yet. Where there is a GPU, all processes share it.
"""

import argparse
import json
import logging
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from hf_mabprune.cli.guard import guarded
from hf_mabprune.progress import stage
from research.studies.paper.deep.cells import cells
from research.studies.paper.deep.data import ENCODER, SOURCES, prepare
from research.studies.paper.deep.networks import make_network
from research.studies.paper.deep.settings import FULL, QUICK, QUICK_SETTINGS, SETTINGS, Setting
from research.studies.paper.rows import DEEP, RESULTS, Row
from research.studies.paper.runs import NETWORKS, Runs, Unit
from research.studies.sharing import shared_out

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DeepStudy(Runs):
    """Describes a run of the study on deep settings.

    Attributes:
        described: Settings, by name.
    """

    part: ClassVar[str] = DEEP
    version: ClassVar[int] = 1
    described: dict[str, Setting] = field(default_factory=lambda: SETTINGS)

    @classmethod
    def at(cls, data: Path, out: Path, quick: bool = False) -> "DeepStudy":
        """Gives the whole study, or the quick one of two settings."""
        chosen = {name: SETTINGS[name] for name in QUICK_SETTINGS} if quick else SETTINGS
        return cls(data, out, QUICK if quick else FULL, chosen)

    def all_units(self) -> list[Unit]:
        """See `Runs.all_units`."""
        draws = range(self.protocol.splits)
        return [Unit(DEEP, name, draw, setting.width) for name, setting in self.described.items() for draw in draws]

    def inputs(self) -> dict[str, Any]:
        """See `Runs.inputs`."""
        described = {name: asdict(setting) for name, setting in self.described.items()}
        sources = {setting.source: asdict(SOURCES[setting.source]) for setting in self.described.values()}
        return {"settings": described, "sources": sources}

    def prepare(self, units: Sequence[Unit], processes: int) -> None:
        """See `Runs.prepare`: trains the networks."""
        self.make_networks((unit.setting for unit in units), processes)

    def make_networks(self, names: Iterable[str], processes: int = 1) -> dict[str, dict[str, Any]]:
        """Trains the networks that are not there yet; gives their figures by setting.

        Args:
            names: Names of settings.
            processes: Processes that share the work.

        Raises:
            OSError: If data are missing.
        """
        asked = list(dict.fromkeys(names))
        for source in (self.described[name].source for name in asked):
            if not SOURCES[source].kind:  # stories are made by the processes
                prepare(source, None, self.data)
        with stage("benchmark", len(asked), "networks") as work:
            made = {}
            for name, figures in shared_out([partial(self._network, name) for name in asked], processes):
                made[name] = figures
                work.count(len(made))
        return made

    def cells(self, unit: Unit) -> list[Row]:
        """See `Runs.cells`."""
        setting = self.described[unit.setting]
        settings = partial(setting.settings, self.data, self.out / NETWORKS, self.protocol, unit.draw)
        figures = self._network(unit.setting)[1]
        return cells(unit.setting, unit.draw, settings, figures, self.protocol)

    def _network(self, name: str) -> tuple[str, dict[str, Any]]:
        setting = self.described[name]
        prepare(setting.source, None, self.data)
        settings = setting.settings(self.data, self.out / NETWORKS, self.protocol, 0, {})
        return name, make_network(setting.network, settings, self.data / ENCODER)


def main() -> int:
    """Parses, runs, says what came of it; one line and exit code 2 for what the user can mend."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--data", type=Path, required=True, help="folder that research.studies.paper.deep.data wrote")
    parser.add_argument("--out", type=Path, required=True, help="folder of cells and networks")
    parser.add_argument("--processes", type=int, default=1, help="that share the work")
    parser.add_argument("--quick", action="store_true", help="two settings, one draw: minutes")
    parser.add_argument("--only", nargs="+", default=[], help="cells, e.g. setting=mnist,one_fact draw=0")
    parser.add_argument("--networks", action="store_true", help="networks alone")
    parser.add_argument("--missing", action="store_true", help="only what the file of --results does not hold")
    parser.add_argument("--results", type=Path, default=RESULTS, help="file of all cells, for --missing")
    options = parser.parse_args()
    return guarded(lambda _: run(options), [])


def run(options: argparse.Namespace) -> str:
    """Makes networks, or all cells that are missing."""
    study = DeepStudy.at(options.data, options.out, options.quick)
    units = study.units(options.only)
    if options.missing:
        units = study.missing(units, options.results)
    if options.networks:
        return json.dumps(study.make_networks((unit.setting for unit in units), options.processes), indent=1) + "\n"
    if not units:
        return f"{options.results} holds all of these cells\n"
    return f"{len(study.run(units, options.processes))} cells in {options.out}\n"


if __name__ == "__main__":
    sys.exit(main())
