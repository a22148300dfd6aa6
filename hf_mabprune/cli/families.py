"""The table of families for a terminal: what can go of each model type, and what was shown."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version

from rich import box
from rich.console import Console
from rich.table import Table

from hf_mabprune.architectures import ARCHITECTURES
from hf_mabprune.architectures.shown import CHECKS, FamilyRow, Results, ShownOfType, family_rows
from hf_mabprune.arms import KINDS

WIDTH = 110


def all_families(results: Results) -> str:
    """Lists all registered types, a line each: the layouts that kinds of units can go in."""
    headings = ["type", *(f"{kind}s" for kind in KINDS), "uniform head counts"]
    headings += ["prune, s"] if results.timed() else []
    table = Table(*headings, box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ARCHITECTURES.names():
        rows = family_rows(name, results)
        heads = next((row.numbers for row in rows if (row.kind, row.layout) == ("head", "uniform")), "")
        cells = name, *(_layouts(rows, kind) for kind in KINDS), heads, results.types.get(name, ShownOfType()).time()
        table.add_row(*cells[: len(headings)])
    layouts = "both: in per_layer and in uniform, which plain AutoModel loads"
    way_on = "`mabprune families TYPE` says what was shown of one, and why not."
    return "\n".join([_drawn(table), layouts, _shown_with(results), way_on, ""])


def one_family(model_type: str, results: Results) -> str:
    """Describes one type: its rows, with what was shown of each and every reason.

    Raises:
        ValueError: If the type is not supported.
    """
    rows, own = family_rows(model_type, results), results.types.get(model_type, ShownOfType())
    lines = [f"{model_type}: {', '.join(own.classes) or 'not tested'}"]
    for row in rows:
        state = "cannot be had" if row.state == "cannot" else row.state
        lines.append(f"{row.kind}s, {row.layout}: {', '.join((state, *row.checks))}")
        if row.numbers:
            lines.append(f"  loads with plain AutoModel: {row.numbers}")
        if row.reason:
            lines.append(f"  {row.reason}")
    if own.seconds is not None:
        lines.append(f"mabprune prune of a tiny model: {own.seconds} s")
    passed = {name for row in rows for name in row.checks}
    meanings = [f"  {name}: {text}" for name, text in CHECKS.items() if name in passed]
    return "\n".join([*lines, "", _shown_with(results), *meanings, ""])


def families_json(model_types: Sequence[str], results: Results) -> str:
    """Gives the rows of some types as JSON."""
    rows = [asdict(row) for name in model_types for row in family_rows(name, results)]
    found = {"shown_with": results.versions, "installed": _installed(results), "rows": rows}
    return f"{json.dumps(found, indent=2)}\n"


def _layouts(rows: Sequence[FamilyRow], kind: str) -> str:
    """Says in which layouts units of a kind can go; nothing where a type has none."""
    own = [row for row in rows if row.kind == kind]
    states = {row.state for row in own}
    good = [row.layout for row in own if row.state == "shown"]
    bad = next((state for state in ("failed", "not tested") if state in states), "")
    return "both" if len(good) > 1 else "".join(good) or bad or ("stay" if own else "")


def _shown_with(results: Results) -> str:
    """Says with which versions it was shown, and which others are installed."""
    said = ", ".join(f"{name} {number}" for name, number in results.versions.items()) or "nothing yet"
    others = [f"{name} {number}" for name, number in _installed(results).items() if number != results.versions[name]]
    return f"shown with {said}" + (f"; installed: {', '.join(others)}" if others else "")


def _installed(results: Results) -> dict[str, str]:
    return {name: version(name) for name in results.versions}


def _drawn(table: Table) -> str:
    console = Console(width=WIDTH, color_system=None, markup=False, emoji=False)
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().splitlines() if line.strip())
