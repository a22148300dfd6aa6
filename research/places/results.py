"""The table of places: rows of several checkpoints in one JSON file, which pages are made of."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from pydantic import TypeAdapter

from hf_mabprune.evaluation.figures import PlaceFigures
from hf_mabprune.evaluation.report import installed_versions

FILE = Path(__file__).with_name("results.json")
SHOWN = ("torch", "transformers", "accelerate")  # versions
Rows = dict[str, dict[str, PlaceFigures]]  # checkpoint -> place -> what came of it


def read(file: Path = FILE) -> tuple[Rows, dict[str, str]]:
    """Reads rows, and the versions of packages that they were made with; none where there is no file."""
    if not file.exists():
        return {}, {}
    stored = json.loads(file.read_text())
    rows = TypeAdapter(list[PlaceFigures])
    found = {label: rows.validate_json(json.dumps(own)) for label, own in stored["checkpoints"].items()}
    return {label: {row.place: row for row in own} for label, own in found.items()}, stored["versions"]


def add(label: str, rows: Sequence[PlaceFigures], file: Path = FILE) -> None:
    """Writes rows of a checkpoint into a file, over earlier ones of the same places, and a page beside it."""
    known, _ = read(file)
    known.setdefault(label, {}).update({row.place: row for row in rows})
    checkpoints = {name: [asdict(own[place]) for place in sorted(own)] for name, own in sorted(known.items())}
    text = json.dumps({"versions": installed_versions(), "checkpoints": checkpoints}, indent=1)
    file.write_text(f"{text}\n")
    file.with_suffix(".md").write_text(f"{tables(known)}\n")


def page() -> str:
    """Writes the tables of all files of rows that lie here, and the versions that they were made with."""
    rows: Rows = {}
    versions: dict[str, str] = {}
    for file in sorted(FILE.parent.glob("results*.json")):
        found, own = read(file)
        versions |= own
        for label, places in found.items():
            rows.setdefault(label, {}).update(places)
    made_with = ", ".join(f"{name} {versions[name]}" for name in SHOWN if name in versions)
    return f"{tables(dict(sorted(rows.items())))}\n\nMade with {made_with}."


def tables(rows: Rows) -> str:
    """Writes a table of differences, a column a checkpoint, and below it how to get there, and what else was seen."""
    places = sorted({place for own in rows.values() for place in own})
    lines = [f"| place | {' | '.join(rows)} |", f"| --- |{' --- |' * len(rows)}"]
    lines += [f"| `{place}` | {' | '.join(_cell(own.get(place)) for own in rows.values())} |" for place in places]
    lines += ["", "| place | how, e.g. | |", "| --- | --- | --- |"]
    for place in places:
        tried = {label: own[place] for label, own in rows.items() if place in own}
        recipe = next(iter(tried.values())).recipe
        words = "; ".join(f"{label}: {said}" for label, row in tried.items() if (said := _words(row)))
        lines.append(f"| `{place}` | {_code(recipe)} | {_plain(words)} |")
    return "\n".join(lines)


def _cell(row: PlaceFigures | None) -> str:
    """Says how far apart, and in how many seconds; or what came of it instead."""
    if row is None or row.difference is None:
        return row.outcome if row else ""
    counted = f"{row.difference:.0f} others" if row.of.endswith("tokens") else f"{row.difference:.1e}"
    return f"{counted}, {row.seconds:.1f} s"


def _words(row: PlaceFigures) -> str:
    what = "" if row.difference is None or row.of == "logits" else f"of {row.of}"
    return "; ".join(filter(None, [what, row.note]))


def _code(lines: str) -> str:
    return "<br>".join(f"`{line}`" for line in lines.splitlines())


def _plain(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
