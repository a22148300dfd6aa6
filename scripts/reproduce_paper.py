"""The study of arXiv 2606.07615 on tables: networks, policies, controls, rivals, statistics and a page of claims.

    python scripts/reproduce_paper.py --data DIR --out runs/paper --processes 16
    python scripts/reproduce_paper.py --data DIR --out runs/quick --quick
    python scripts/reproduce_paper.py --data DIR --out runs/paper --only suite=regression setting=servo,cpu draw=0
    python scripts/reproduce_paper.py --data DIR --out runs/paper --missing
    python scripts/reproduce_paper.py --report --add runs/paper runs/deep

A run that was stopped goes on with the same command. Its page and figures go to its folder. `--report` makes those of
the documentation from the cells that the repository holds; with `--add` it first takes up those that other runs have
finished, over or not. `--missing` makes only what the repository does not hold yet. Cells are only put together that
were made under the same settings, by the same version of the study. The deep settings have a program of their own,
`python -m research.studies.paper.deep.study`.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # research/ is no part of what is installed

import pandas as pd

from hf_mabprune.cli.guard import guarded
from research.studies.paper.methods import Protocol
from research.studies.paper.rows import KEY, RESULTS, TABLES, add_results, read_results
from research.studies.paper.study import QUICK, QUICK_TABLES, Study
from research.studies.store import read_cells

PAGE = ROOT / "docs" / "paper_study.md"


def main() -> int:
    """Parses, calls, prints; one line and exit code 2 for what the user can mend."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--data", type=Path, help="folder of the tables, with index.json")
    parser.add_argument("--out", type=Path, default=Path("runs/paper"), help="folder of cells, networks and page")
    parser.add_argument("--processes", type=int, default=1, help="that share the work; cells are the same for any")
    parser.add_argument("--quick", action="store_true", help="eight tables, two splits: minutes")
    parser.add_argument("--only", nargs="+", default=[], help="cells, e.g. suite=regression setting=servo,cpu draw=0")
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
        raise ValueError("--data is missing: the folder of the tables, with index.json")
    if options.processes < 1:
        raise ValueError(f"--processes must be at least 1, got {options.processes}")
    study = Study(options.data, options.out, *((QUICK, QUICK_TABLES) if options.quick else (Protocol(),)))
    units = study.units(options.only)
    if options.missing:
        units = study.missing(units, options.results)
    print(f"{len(units)} splits, {options.processes} processes; cells go to {options.out}", flush=True)
    if options.missing:  # a page of what is left of the study would mislead
        made = len(study.run(units, options.processes)) if units else 0
        return f"{made} cells that {options.results.name} does not hold; add them with --report --add {options.out}\n"
    return page_of(study.run(units, options.processes), options.out / PAGE.name, {TABLES: study.protocol})


def report(options: argparse.Namespace) -> str:
    """Makes the page from cells on disk."""
    if options.add:
        added = add_results([read_cells(folder, KEY) for folder in options.add], options.results)
        print(f"{added} cells are new in {options.results}", flush=True)
    from research.studies.paper.page import protocols_of

    cells = read_results(options.results)
    return page_of(cells, options.page, protocols_of(cells.attrs))


def page_of(cells: pd.DataFrame, page: Path, protocols: dict[str, Protocol]) -> str:
    """Writes page and figures; both need the extra `studies`, which the cells do not."""
    from research.studies.paper.page import write_page

    return write_page(cells, page, protocols)


if __name__ == "__main__":
    sys.exit(main())
