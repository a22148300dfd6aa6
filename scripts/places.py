"""Tries the places that a finished run can be put to use in, and writes how far each is from plain Auto classes.

    python scripts/places.py RUN
    python scripts/places.py RUN --only pipeline --label "MiniLM, per layer" --out research/places/results.json
    python scripts/places.py RUN --only without_package onnx --write

RUN is a folder that `mabprune prune` left behind, or any checkpoint. The second command puts the rows into a file of
several checkpoints, with a page beside it; `python scripts/components.py` then fills them into docs/places.md. The
third one puts them into the report and the card of the run.
"""

import argparse
import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # research/ is no part of what is installed

from hf_mabprune.artifacts.run_folder import RunFolder
from hf_mabprune.artifacts.run_writer import add_places
from hf_mabprune.config import PruneConfig
from hf_mabprune.places import subject_of, tried
from research.places import place_names
from research.places.results import add


def main() -> int:
    """Parses, tries, prints."""
    names = place_names()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a finished run, or a checkpoint")
    parser.add_argument("--only", nargs="+", metavar="PLACE", choices=names, default=names, help=", ".join(names))
    parser.add_argument("--out", type=Path, help="JSON file that the rows are put into, and a page beside it")
    parser.add_argument("--write", action="store_true", help="put the rows into the report and the card of the run")
    parser.add_argument("--label", help="what the checkpoint is called there; the folder's name when left out")
    parser.add_argument("--dense", help="folder or Hub name of the dense model; that of the run when left out")
    parser.add_argument("--python", nargs="+", default=[], metavar="PLACE=PATH", help="Python of a place of its own")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    config = RunFolder(options.run).config
    dense = options.dense or (PruneConfig.from_yaml(config).model.name if config.exists() else None)
    pythons = dict(each.split("=", 1) for each in options.python)
    subject, rows = subject_of(options.run, dense=dense, pythons=pythons), []
    for name in options.only:
        rows.append(tried(name, subject))
        print(f"{name}: {rows[-1]}", flush=True)
    if options.write:
        add_places(options.run, rows)
    if options.out:
        add(options.label or options.run.name, rows, options.out)
    return int(any(row.outcome in ("other", "failed") for row in rows))


if __name__ == "__main__":
    sys.exit(main())
