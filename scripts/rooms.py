"""Draws the rooms of the code into `docs/rooms.svg`: what each is for, and which imports which.

    python scripts/rooms.py            draws
    python scripts/rooms.py --check    only says whether the picture is out of date; exit code 1 if it is

Nothing of it is written by hand: the order is that of the `layers` contract in `pyproject.toml`, the sentences are the
first of the docstrings, the dots are the imports that the sources make.
"""

import argparse
import ast
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import grimp
import tomllib

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "rooms.svg"
PACKAGE = "hf_mabprune"
LETTERS, LINES = 55, 2  # of a sentence
ROW, DOT, NAME, SENTENCE, TOP, EDGE = 30, 13, 112, 334, 104, 12  # pixels
PAPER, BAND, LINE, QUIET = "#ffffff", "#f3f6f9", "#d5dce3", "#51606f"
OPEN, ROOM, FILE = "#b3541e", "#1f5f99", "#51606f"  # open folders, other folders, files


@dataclass(frozen=True)
class Room:
    """A folder or a file of the package.

    Attributes:
        module: Dotted name.
        layer: Number of its layer, from the top.
        says: First sentence of its docstring.
        colour: Colour of what it is: an open folder, another folder, a file.
    """

    module: str
    layer: int
    says: str
    colour: str

    @property
    def name(self) -> str:
        """What it is called on the picture; folders end in a slash."""
        return self.module.removeprefix(f"{PACKAGE}.") + ("" if self.colour == FILE else "/")


def main() -> int:
    """Draws, or checks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args().check
    rooms = list(read_rooms())
    picture = draw(rooms, imports_between([room.module for room in rooms]))
    stale = not PICTURE.exists() or PICTURE.read_text() != picture
    if stale:
        print(f"{PICTURE.relative_to(ROOT)} {'is out of date: run scripts/rooms.py' if check else 'is drawn'}")
        if not check:
            PICTURE.write_text(picture)
    return int(check and stale)


def read_rooms() -> Iterator[Room]:
    """Gives the rooms in the order of their layers."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    independent = (module for contract in contracts for module in contract.get("modules", []))
    opened = {module.removesuffix(".*") for module in independent}
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    for number, layer in enumerate(layers):
        for module in layer.split(" | "):
            folder = ROOT.joinpath(*module.split("."))
            file = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
            colour = OPEN if module in opened else ROOM if folder.is_dir() else FILE
            yield Room(module, number, first_sentence(file), colour)


def first_sentence(file: Path) -> str:
    """Gives the first sentence of a module's docstring."""
    paragraph = " ".join((ast.get_docstring(ast.parse(file.read_text())) or "").partition("\n\n")[0].split())
    return paragraph.partition(". ")[0].removesuffix(".").replace("`", "")


def imports_between(modules: Sequence[str]) -> set[tuple[str, str]]:
    """Finds which room imports which: pairs of importer and imported."""
    graph = grimp.build_graph(PACKAGE, "research", cache_dir=None)
    homes = {one: home for one in graph.modules for home in modules if f"{one}.".startswith(f"{home}.")}
    pairs = (
        (home, homes.get(imported))
        for importer, home in homes.items()
        for imported in graph.find_modules_directly_imported_by(importer)
    )
    return {(home, there) for home, there in pairs if there and there != home}


def draw(rooms: Sequence[Room], imports: set[tuple[str, str]]) -> str:
    """Draws one row a room: its name, its sentence, and a dot below the name of each room that it imports.

    Args:
        rooms: Rooms, from the top.
        imports: Pairs of importer and imported.
    """
    left, bottom = EDGE + NAME + SENTENCE, TOP + ROW * len(rooms)
    width, height = left + DOT * len(rooms) + 64, bottom + 34
    across = {room.module: left + DOT * number + DOT / 2 for number, room in enumerate(rooms)}
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="system-ui, sans-serif" font-size="11" role="img">',
        "<title>The rooms of the code, in layers, and which imports which</title>",
        f'<rect width="{width}" height="{height}" rx="6" fill="{PAPER}"/>',
    ]
    for number, room in enumerate(rooms):
        if room.layer % 2 == 0:
            band = f'<rect y="{TOP + ROW * number}" width="{width - 52}" height="{ROW}" fill="{BAND}"/>'
            parts.append(band)
    for number, room in enumerate(rooms):
        parts.append(f'<path d="M{across[room.module]} {TOP}V{TOP + ROW * number + 15}" stroke="{LINE}"/>')
    for number, room in enumerate(rooms):
        parts += words_of(room, TOP + ROW * number, across[room.module])
        parts += dots_of(room, TOP + ROW * number, rooms, across, imports)
    parts += legend(bottom + 21)
    return "\n".join([*parts, "</svg>"]) + "\n"


def words_of(room: Room, top: float, x: float) -> Iterator[str]:
    """Draws the name and the sentence of a row, and the name of its column."""
    yield text(EDGE, top + 19, room.name, room.colour, ' font-weight="600" font-size="12"')
    lines = textwrap.wrap(room.says, LETTERS, max_lines=LINES, placeholder=" ...")
    for place, line in enumerate(lines):
        yield text(EDGE + NAME, top + (19 if len(lines) == 1 else 13) + 12 * place, line, QUIET)
    yield text(x + 4, TOP - 6, room.name, room.colour, f' transform="rotate(-60 {x + 4} {TOP - 6})"')


def dots_of(
    room: Room, top: float, rooms: Sequence[Room], across: dict[str, float], imports: set[tuple[str, str]]
) -> Iterator[str]:
    """Draws the dots of a row, and a square where it meets its own column."""
    yield f'<rect x="{across[room.module] - 4}" y="{top + 11}" width="8" height="8" fill="{LINE}"/>'
    for other in rooms:
        if (room.module, other.module) in imports:
            said = f"<title>{room.name} imports {other.name}</title>"
            yield f'<circle cx="{across[other.module]}" cy="{top + 15}" r="4" fill="{room.colour}">{said}</circle>'


def legend(y: float) -> Iterator[str]:
    """Says what the colours and the dots mean."""
    for x, colour, kind in (
        (EDGE, OPEN, "open folder"),
        (EDGE + 84, ROOM, "other folder"),
        (EDGE + 174, FILE, "file"),
    ):
        yield text(x, y, kind, colour, ' font-weight="600"')
    said = "A dot: the room of the row imports the room of the column. Bands are layers; imports go down only."
    yield text(EDGE + 212, y, said, QUIET)


def text(x: float, y: float, words: str, colour: str, more: str = "") -> str:
    """Writes a line of text."""
    return f'<text x="{x}" y="{y}" fill="{colour}"{more}>{escape(words)}</text>'


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
