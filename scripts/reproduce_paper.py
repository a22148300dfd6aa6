"""The study of arXiv 2606.07615 on tables: networks, policies, controls, rivals, statistics and a page of claims.

    python scripts/reproduce_paper.py --data DIR --out runs/paper --processes 16
    python scripts/reproduce_paper.py --data DIR --out runs/quick --quick
    python scripts/reproduce_paper.py --data DIR --out runs/paper --only suite=regression table=servo,cpu draw=0
    python scripts/reproduce_paper.py --report --cells runs/paper runs/deep

A run that was stopped goes on with the same command. Its page and figures go to its folder. `--report` makes those of
the documentation from the cells that the repository holds; with `--cells` it takes over those of finished runs first.
The deep settings have a program of their own, `python -m research.studies.paper.deep.study`.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # research/ is no part of what is installed

import pandas as pd

from hf_mabprune.cli.guard import guarded
from research.studies.paper.methods import Protocol
from research.studies.paper.rows import TABLES, read_cells, read_results, write_results
from research.studies.paper.study import QUICK, QUICK_TABLES, Study

RESULTS = ROOT / "research" / "studies" / "paper" / "results.parquet"
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
    parser.add_argument("--only", nargs="+", default=[], help="cells, e.g. suite=regression table=servo,cpu draw=0")
    parser.add_argument("--report", action="store_true", help="of the cells that are there; nothing is measured")
    parser.add_argument("--cells", type=Path, nargs="+", default=[], help="folders of finished runs, for --report")
    parser.add_argument("--results", type=Path, default=RESULTS, help="file of all cells that --report reads")
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
    print(f"{len(units)} splits, {options.processes} processes; cells go to {options.out}", flush=True)
    cells = study.run(units, options.processes)
    return page_of(cells, options.out / PAGE.name, {TABLES: study.protocol})


def report(options: argparse.Namespace) -> str:
    """Makes the page from cells on disk."""
    if options.cells:
        write_results([read_cells(folder) for folder in options.cells], options.results)
    cells = read_results(options.results)
    return page_of(cells, options.page, {part: Protocol.of(stored) for part, stored in cells.attrs.items()})


def page_of(cells: pd.DataFrame, page: Path, protocols: dict[str, Protocol]) -> str:
    """Writes page and figures; both need the extra `studies`, which the cells do not."""
    from research.studies.paper.page import write_page

    return write_page(cells, page, protocols)


if __name__ == "__main__":
    sys.exit(main())
