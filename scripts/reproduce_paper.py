"""The study of arXiv 2606.07615: networks, policies, controls, rivals, statistics and a page of claims.

    python scripts/reproduce_paper.py --data DIR --out runs/paper
    python scripts/reproduce_paper.py --data DIR --out runs/quick --quick
    python scripts/reproduce_paper.py --data DIR --out runs/paper --only suite=regression setting=servo,cpu draw=0
    python scripts/reproduce_paper.py --data DIR --out runs/paper --only suite=deep --networks
    python scripts/reproduce_paper.py --data DIR --out runs/paper --missing
    python scripts/reproduce_paper.py --report --add runs/paper

DIR/tabular holds the tables as CSV and index.json, which says their types and targets; DIR/mnist, cifar10, sst2,
agnews, nli_sick and openbookqa hold train.parquet and test.parquet. Networks and cells are kept as they are made: a
run that was stopped goes on with the same command. Its page and figures go to its folder. `--report` makes those of
the documentation from the cells that the repository holds; with `--add` it first takes up those that other runs have
finished, over or not. `--missing` makes only what the repository does not hold yet. Cells are only put together that
were made under the same settings, by the same version of the study.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # research/ is no part of what is installed

import pandas as pd

from hf_mabprune.cli.guard import guarded
from research.benchmarks.only import matching
from research.studies.paper.deep.data import BASE
from research.studies.paper.deep.study import DeepStudy
from research.studies.paper.methods import Protocol
from research.studies.paper.rows import KEY, RESULTS, add_results, read_results
from research.studies.paper.runs import Part, Unit
from research.studies.paper.study import Study
from research.studies.sharing import add_processes, processes_of
from research.studies.store import read_cells, stores

PAGE = ROOT / "docs" / "paper_study.md"


def main() -> int:
    """Parses, calls, prints; one line and exit code 2 for what the user can mend."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--data", type=Path, help="folder of tabular, mnist, cifar10, sst2, ...")
    parser.add_argument("--out", type=Path, default=Path("runs/paper"), help="folder of cells, networks and page")
    parser.add_argument("--base", default=BASE, help="encoder that texts are read with: Hub name or folder")
    add_processes(parser)
    parser.add_argument("--quick", action="store_true", help="eight tables, two kinds of stories: minutes")
    parser.add_argument("--only", nargs="+", default=[], help="cells, e.g. suite=regression setting=servo,cpu draw=0")
    parser.add_argument("--networks", action="store_true", help="the networks of deep settings alone")
    parser.add_argument("--missing", action="store_true", help="only what the file of --results does not hold")
    parser.add_argument("--report", action="store_true", help="of the cells that are there; nothing is measured")
    parser.add_argument("--add", type=Path, nargs="+", default=[], help="folders of runs, for --report")
    parser.add_argument("--results", type=Path, default=RESULTS, help="file of all cells, for --report and --missing")
    parser.add_argument("--page", type=Path, default=PAGE, help="page that --report writes; figures go beside it")
    options = parser.parse_args()
    return guarded(lambda _: report(options) if options.report else run(options), [])


def run(options: argparse.Namespace) -> str:
    """Makes all cells that are missing, and the page of them."""
    if options.data is None:
        raise ValueError("--data is missing: the folder that tabular, mnist, cifar10, sst2, ... lie in")
    processes = processes_of(options)
    work = asked(options)
    for part, _ in work:
        part.store()  # a folder of other settings is refused before any part is begun
    for part, units in work:
        part.gather(units)
    print(
        f"{sum(len(units) for _, units in work)} draws of settings, {processes} processes; cells go to {options.out}",
        flush=True,
    )
    if options.networks:
        for part, units in work:
            part.prepare(units, processes)
        return f"networks are in {', '.join(str(part.out) for part, _ in work)}\n"
    made = [part.run(units, processes) for part, units in work]
    if options.missing:  # a page of what is left of the study would mislead
        cells = sum(len(each) for each in made)
        return f"{cells} cells that {options.results.name} does not hold; add them with --report --add {options.out}\n"
    return page_of(pd.concat(made), options.out / PAGE.name, {part.part: part.protocol for part, _ in work})


def asked(options: argparse.Namespace) -> list[tuple[Part, Sequence[Unit]]]:
    """Gives the parts of the study that something is to be made of, and what."""
    parts = (
        Study.at(options.data / "tabular", options.out / Study.part, options.quick),
        DeepStudy.at(options.data, options.out / DeepStudy.part, options.quick, options.base),
    )
    listed = [(part, part.units()) for part in parts]
    chosen = set(matching([unit for _, units in listed for unit in units], options.only, Part.asked_by))
    work = []
    for part, everything in listed:
        units = [unit for unit in everything if unit in chosen]
        if options.missing:
            units = part.missing(units, options.results)
        if units:
            work.append((part, units))
    return work


def report(options: argparse.Namespace) -> str:
    """Makes the page from cells on disk."""
    if options.add:
        runs = [read_cells(store, KEY) for folder in options.add for store in stores(folder)]
        print(f"{add_results(runs, options.results)} cells are new in {options.results}", flush=True)
    from research.studies.paper.page import protocols_of

    cells = read_results(options.results)
    return page_of(cells, options.page, protocols_of(cells.attrs))


def page_of(cells: pd.DataFrame, page: Path, protocols: dict[str, Protocol]) -> str:
    """Writes page and figures; both need the extra `studies`, which the cells do not."""
    from research.studies.paper.page import write_page

    return write_page(cells, page, protocols)


if __name__ == "__main__":
    sys.exit(main())
