"""Writes what is registered into the pages of the documentation, so that no list there needs a line.

    python scripts/components.py            fills the pages in
    python scripts/components.py --check    only says which pages are out of date; exit code 1 if there are any

A page says where a table goes: `<!-- table of policies -->`, and `<!-- end of table -->` after it.
"""

import argparse
import inspect
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from hf_mabprune.architectures import ARCHITECTURES
from hf_mabprune.architectures.shown import CHECKS, FamilyRow, ShownOfType, family_rows, read_results
from hf_mabprune.compensation import COMPENSATIONS
from hf_mabprune.config.search import SearchConfig
from hf_mabprune.criteria import CRITERIA
from hf_mabprune.effects.rewards import REWARDS
from hf_mabprune.exports import EXPORTS
from hf_mabprune.places import PLACES
from hf_mabprune.policies import POLICIES, Policy
from hf_mabprune.registry import Registry, describe_options
from hf_mabprune.search.rules import RULES
from hf_mabprune.tasks.base import TASKS
from research.places import place_names, results

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # research/ is no part of what is installed
MARKED = re.compile(r"(?P<begin><!-- table of (?P<name>[\w ]+) -->\n).*?(?P<end><!-- end of table -->)", re.S)


def main() -> int:
    """Fills the pages in, or checks them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args().check
    pages = stale_pages()
    for page in pages:
        print(f"{page.relative_to(ROOT)} {'is out of date: run scripts/components.py' if check else 'is filled in'}")
        if not check:
            page.write_text(filled(page.read_text()))
    return int(check and bool(pages))


def stale_pages() -> list[Path]:
    """Lists the pages that do not show what is registered."""
    return [page for page in sorted((*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"))) if not is_current(page)]


def is_current(page: Path) -> bool:
    """Tells whether a page shows what is registered."""
    text = page.read_text()
    return filled(text) == text


def filled(text: str) -> str:
    """Puts every table of a page in its place."""
    return MARKED.sub(lambda found: f"{found['begin']}{TABLES[found['name']]()}\n{found['end']}", text)


def model_types() -> str:
    """Lists the model types by the file that declares them, and what that file says of its families."""
    files: dict[str, list[str]] = {}
    for name in ARCHITECTURES.names():
        files.setdefault(ARCHITECTURES.get(name).__module__, []).append(f"`{name}`")
    rows = [(", ".join(names), first_sentence(sys.modules[module])) for module, names in files.items()]
    return table(("model types", "families"), rows)


def checks() -> str:
    """Lists the checks of the table of families, and the versions that they passed with."""
    versions = " and ".join(f"{name} {version}" for name, version in read_results().versions.items())
    return f"{table(('check', 'what passed'), CHECKS.items())}\n\nShown with {versions}."


def families() -> str:
    """Lists what was shown of each model type, kind of units and layout, and why not where not."""
    results, rows = read_results(), []
    timed = ["prune, s"] if results.timed() else []
    for name in ARCHITECTURES.names():
        own = results.types.get(name, ShownOfType())
        once = [str(len(own.classes)), *(own.time() for _ in timed)]
        for row in family_rows(name, results):
            passed = ["✓" if check in row.checks else "" for check in CHECKS]
            rows.append([f"`{name}`", row.kind, row.layout, *once, *passed, row.numbers, why_not(row)])
            once = [""] * len(once)
    heading = ("type", "kind", "layout", "AutoModel classes", *timed, *CHECKS, "loads", "why not")
    return table(heading, rows)


def why_not(row: FamilyRow) -> str:
    """Says what is in the way, and how a row stands where nothing else says it."""
    return row.reason or ("not tested" if row.state == "not tested" else "")


def count_of_families() -> str:
    """Says of how many types all that applies was shown."""
    results = read_results()
    rows = [family_rows(name, results) for name in ARCHITECTURES.names()]
    shown = sum(all(row.state in ("shown", "cannot") for row in own) for own in rows)
    table_of = "[the table of families](docs/families.md)"
    return f"Of {shown} types {table_of} says what the tests have shown, and why not where something cannot be had."


def tasks() -> str:
    """Lists the tasks with the head that each is for, and its own metrics."""
    rows = []
    for name in TASKS.names():
        task = TASKS.get(name)
        rows.append((f"`{name}`", first_sentence(task), f"`{task.auto_class}`", ", ".join(task.default_metrics)))
    return table(("task", "what it does", "model", "metrics"), rows)


def rewards() -> str:
    """Lists the rewards, the default first, with their formulas."""
    default = SearchConfig.model_fields["reward"].default
    names = sorted(REWARDS.names(), key=lambda name: name != default)
    rows = [(f"`{name}`", first_sentence(REWARDS.get(name))) for name in names]
    return table(("reward", "formula, per example"), rows)


def components(registry: Registry[Any], shared: type | None = None) -> Callable[[], str]:
    """Lists the entries of a registry with their options, but those that a base class gives to all of them."""

    def listed() -> str:
        common = describe_options(shared) if shared else []
        rows = []
        for name in registry.names():
            own = [option for option in describe_options(registry.get(name)) if option not in common]
            options = ", ".join(f"`{option}` {default}" for option, default, _ in own)
            rows.append((f"`{name}`", first_sentence(registry.get(name)), options))
        return table((registry.kind, "what it goes by", "options, with their defaults"), rows)

    return listed


def places() -> str:
    """Lists the places, those outside among them."""
    names = place_names()
    return table(("place", "what it is"), [(f"`{name}`", first_sentence(PLACES.get(name))) for name in names])


def first_sentence(entry: Any) -> str:
    """Gives the first paragraph of a docstring."""
    return " ".join((inspect.getdoc(entry) or "").partition("\n\n")[0].split())


def table(heading: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Writes a table in Markdown; what would be marks in a cell is shown as it is."""
    head = list(heading)
    escaped = [[re.sub(r"([|*])", r"\\\1", cell) for cell in row] for row in rows]
    lines = [head, ["---"] * len(head), *escaped]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


TABLES: dict[str, Callable[[], str]] = {
    "model types": model_types,
    "checks": checks,
    "families": families,
    "counted families": count_of_families,
    "tasks": tasks,
    "rewards": rewards,
    "policies": components(POLICIES, Policy),
    "removal rules": components(RULES),
    "criteria": components(CRITERIA),
    "compensations": components(COMPENSATIONS),
    "exports": components(EXPORTS),
    "places": places,
    "tried places": results.page,
}

if __name__ == "__main__":
    sys.exit(main())
