"""Makes the table of families of what the tests have shown: the data that `mabprune families` prints, and the pages.

    python -m pytest --shows -m "not gpu" --junitxml=build/families.xml
    python scripts/families.py build/families.xml

`make families` does both. Several files of results are taken together.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from components import filled, stale_pages

from hf_mabprune.architectures import ARCHITECTURES, shown
from hf_mabprune.architectures.shown import CHECKS, LAYOUTS, Results, Shown, ShownOfType

FILE = Path(shown.__file__).with_name(shown.FILE)
VERSIONS = ("transformers", "torch")


def main() -> int:
    """Writes the data file, then the pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", help="JUnit results of the tests")
    found = gathered([note for file in parser.parse_args().results for note in notes(file)])
    FILE.write_text(as_lines(found))
    for page in stale_pages():
        page.write_text(filled(page.read_text()))
    missing = sorted({*ARCHITECTURES.names()} - found.types.keys())
    failed = sorted(name for name, own in found.types.items() if any(row.failed for row in own.rows.values()))
    print(f"{len(found.types)} types")
    print(f"not tested: {', '.join(missing) or 'none'}; failed: {', '.join(failed) or 'none'}")
    return int(bool(missing or failed))


def notes(file: str) -> Iterator[dict[str, Any]]:
    """Reads what each test has noted, and whether it passed; tests that were skipped show nothing."""
    for case in ElementTree.parse(file).iter("testcase"):
        if case.find("skipped") is None:
            passed = case.find("failure") is None and case.find("error") is None
            for each in case.iterfind("properties/property[@name='shows']"):
                yield json.loads(each.attrib["value"]) | {"passed": passed}


def gathered(found: list[dict[str, Any]]) -> Results:
    """Puts together what was noted.

    Raises:
        ValueError: If it is of several versions of a package.
    """
    results = Results()
    for note in found:
        versions = {name: note[name] for name in VERSIONS}
        if results.versions not in ({}, versions):
            raise ValueError(f"results must be of one installation, got {results.versions} and {versions}")
        results.versions = versions
        own = results.types.setdefault(note["type"], ShownOfType())
        if note["check"] == "command":
            own.seconds = note["seconds"] if note["passed"] else None
            continue
        if note["check"] == "equivalence" and note["passed"]:
            own.classes = sorted({*own.classes, note["head"]})
        for kind in note["kinds"]:
            for layout in [note["layout"]] if note["layout"] else LAYOUTS:
                add(own.rows.setdefault(f"{kind} {layout}", Shown()), note)
    for own in results.types.values():
        own.rows = {place: sorted_out(own.rows[place]) for place in sorted(own.rows)}
    results.types = dict(sorted(results.types.items()))
    return results


def add(row: Shown, note: dict[str, Any]) -> None:
    """Adds one note to a row."""
    if note["check"] != "sizes":
        (row.checks if note["passed"] else row.failed).append(note["check"])
    elif note["passed"]:
        row.counts, row.units, row.hidden = note["counts"], note["units"], note["hidden"]
        row.reason = re.split(r"\.? Use layout|\. Use per_layer|: use per_layer", note["reason"])[0].rstrip(".")
        row.reason = row.reason.replace("ValueError: ", "")
    else:
        row.failed.append("equivalence")


def sorted_out(row: Shown) -> Shown:
    """Gives a row with each check once, a failed one under `failed` alone."""
    failed = [name for name in CHECKS if name in row.failed]
    checks = [name for name in CHECKS if name in row.checks and name not in failed]
    return row.model_copy(update={"checks": checks, "failed": failed})


def as_lines(results: Results) -> str:
    """Writes results as JSON, one line a type, so that a change shows as what it is."""
    types = [f'"{name}": {own.model_dump_json(exclude_defaults=True)}' for name, own in results.types.items()]
    return f'{{"versions": {json.dumps(results.versions)}, "types": {{\n' + ",\n".join(types) + "\n}}\n"


if __name__ == "__main__":
    sys.exit(main())
