"""The study of arXiv 2409.19727: what pruning does to accuracy and to how readable units are.

    python scripts/interpretability_study.py --data DIR --out runs/quick --quick
    python scripts/interpretability_study.py --data DIR --out runs/study --text-model NAME
    python scripts/interpretability_study.py --data DIR --out runs/study --only network=googlenet seed=0 rate=0.8
    python scripts/interpretability_study.py --report --cells runs/study

DIR holds cifar10/ (and sst2/ for --text-model), each with train.parquet and test.parquet. A run that was stopped goes
on with the same command. Its page and figures go to its folder; `--report` makes those of the documentation from the
cells that the repository holds; with `--cells` it takes over the finished units of a run first, beside what was made
under the same settings. GoogLeNet is that of torchvision.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # research/ is no part of what is installed

import research.studies  # noqa: F401 - before all that imports transformers: see there

# isort: split
from hf_mabprune.cli.guard import guarded
from research.studies.interpretability.page import write_page
from research.studies.interpretability.protocol import QUICK, Protocol
from research.studies.interpretability.rows import KEY, read_results, write_results
from research.studies.interpretability.similarity import SIMILARITIES
from research.studies.interpretability.study import Study
from research.studies.interpretability.texts import ENCODER
from research.studies.sharing import add_processes, processes_of
from research.studies.store import PROTOCOL, read_cells

RESULTS = ROOT / "research" / "studies" / "interpretability" / "results.parquet"
PAGE = ROOT / "docs" / "interpretability_study.md"
SECTIONS = ROOT / "research" / "studies" / "interpretability" / "units"


def main() -> int:
    """Parses, calls, prints; one line and exit code 2 for what the user can mend."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--data", type=Path, help="folder with cifar10/ and sst2/")
    parser.add_argument("--out", type=Path, default=Path("runs/interpretability"), help="folder of cells and networks")
    add_processes(parser)
    parser.add_argument("--quick", action="store_true", help="narrow networks, few images and epochs: minutes")
    parser.add_argument("--similarity", default="self_supervised", help=f"of images: {', '.join(SIMILARITIES)}")
    parser.add_argument("--text-model", default="", help="text classifier, folder or Hub name; without, no texts")
    parser.add_argument("--encoder", default=ENCODER, help="sentence encoder that texts are compared with")
    parser.add_argument("--image-model", default="", help="image classifier, folder or Hub name; without, none")
    parser.add_argument("--only", nargs="+", default=[], help="cells, e.g. network=googlenet seed=0 rate=0.8")
    parser.add_argument("--report", action="store_true", help="of the cells that are there; nothing is measured")
    parser.add_argument("--cells", type=Path, help="folder of a run, for --report")
    parser.add_argument("--results", type=Path, default=RESULTS, help="file of all cells that --report reads")
    parser.add_argument("--page", type=Path, default=PAGE, help="page that --report writes; figures go beside it")
    options = parser.parse_args()
    return guarded(lambda _: report(options) if options.report else run(options), [])


def run(options: argparse.Namespace) -> str:
    """Makes the cells that are missing, and the page of all that are there."""
    if options.data is None:
        raise ValueError("--data is missing: the folder with cifar10/ and sst2/")
    processes = processes_of(options)
    protocol = replace(QUICK if options.quick else Protocol(), similarity=options.similarity)
    models = options.text_model, options.encoder, options.image_model
    study = Study(options.data, options.out, protocol, *models)
    units = study.units(options.only)
    print(f"{len(units)} units, {processes} processes; cells go to {options.out}", flush=True)
    study.run(units, processes)
    return write_page(read_cells(options.out, KEY), options.out / PAGE.name, protocol)


def report(options: argparse.Namespace) -> str:
    """Makes the page from cells on disk."""
    if options.cells:
        write_results(options.cells, options.results)
    cells = read_results(options.results)
    sections = [path.read_text(encoding="utf-8").strip() for path in sorted(SECTIONS.glob("*.md"))]
    return write_page(cells, options.page, Protocol.of(cells.attrs[PROTOCOL]), sections)


if __name__ == "__main__":
    sys.exit(main())
