"""Ways to harm files, trees and texts, drawn at random; each says in a few words what it did."""

import hashlib
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

Random = random.Random
EVIL = "evil.example"
ODD_TEXTS = (
    "<script>alert('CANARY')</script>",
    f"<img src=x onerror=fetch('//{EVIL}')>",
    f"[click here](http://{EVIL}/CANARY)",
    f"![](http://{EVIL}/CANARY.png)",
    "``` CANARY",
    "a`b``c",
    "|CANARY|a|b|",
    "line one\n\n# CANARY\n\nline two",
    "line\r\n---\r\ntags: [CANARY]",
    "---\nlicense: CANARY\n---",
    "{{ 7 * 7 }} {% raw %}",
    "{0} %s %(x)s $HOME ${HOME}",
    "\x1b[31mCANARY\x1b[0m",
    "bell\x07 back\x08 null-ish\x7f",
    "\u202eevil\u202c",
    "zero\u200bwidth",
    "émoji 🦙 ünïcode",
    "a" * 300,
    " ",
    "  leading and trailing  ",
    "-rf",
    "--resume",
    "~",
    "null",
    "true",
    "1e5",
    "0x10",
    "!!python/object/apply:os.system [ls]",
    "*alias",
    "&anchor",
    "a: b",
    "#comment",
    "'\"",
    "<!-- CANARY -->",
    "</details><details open>CANARY",
    f"<http://{EVIL}/CANARY>",
    f"http://{EVIL}/CANARY",
    "**CANARY** _it_ ~~x~~",
    "&lt;b&gt; &amp; &#60;i&#62;",
    "\\[CANARY\\]\\",
    "$$\\href{javascript:alert(1)}{CANARY}$$",
)
ODD_NUMBERS = (0, -1, 1, 2, 2**31, 2**63, 10**30, -(2**63), 0.5, 1e-300, 1e308, float("inf"), float("nan"), -0.0)
ODD_VALUES = (None, True, False, "", [], {}, [[]], {"a": {}}, [None], "word", *ODD_NUMBERS)


def flip_bits(path: Path, rng: Random) -> str:
    """Flips one to three bits of a file."""
    content = bytearray(path.read_bytes())
    for _ in range(rng.randint(1, 3)):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)
    return "bits flipped"


def cut_short(path: Path, rng: Random) -> str:
    """Leaves the beginning of a file."""
    content = path.read_bytes()
    path.write_bytes(content[: rng.randrange(len(content))])
    return "cut short"


def lengthen(path: Path, rng: Random) -> str:
    """Puts bytes behind a file."""
    path.write_bytes(path.read_bytes() + rng.randbytes(rng.randint(1, 100)))
    return "longer"


def blank(path: Path, rng: Random) -> str:
    """Sets a stretch of a file to zero."""
    content = bytearray(path.read_bytes())
    start = rng.randrange(len(content))
    stop = min(len(content), start + rng.randint(1, 64))
    content[start:stop] = bytes(stop - start)
    path.write_bytes(content)
    return "blanked"


def empty(path: Path, rng: Random) -> str:
    """Leaves nothing of a file."""
    path.write_bytes(b"")
    return "empty"


def nonsense(path: Path, rng: Random) -> str:
    """Replaces a file by something else."""
    path.write_bytes(rng.choice([b"\xff\xfe\x00\x01", b"<html>404</html>", b"null", b"[]", b"{}", b"\x80abc", b"0"]))
    return "something else"


def remove(path: Path, rng: Random) -> str:
    """Removes a file."""
    path.unlink()
    return "removed"


def make_folder_of(path: Path, rng: Random) -> str:
    """Puts a folder in the place of a file."""
    path.unlink()
    path.mkdir()
    return "a folder"


def make_dangling(path: Path, rng: Random) -> str:
    """Puts a link to nothing in the place of a file."""
    path.unlink()
    path.symlink_to("nowhere")
    return "a dangling link"


BYTES = (flip_bits, flip_bits, flip_bits, cut_short, lengthen, blank, empty, nonsense)
PLACES = (remove, make_folder_of, make_dangling)


def harm_bytes(path: Path, rng: Random) -> str:
    """Harms the content of a file in some way."""
    return rng.choice(BYTES)(path, rng)


def nodes(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Goes through (holder, key) of all entries of a tree."""
    entries = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in list(entries):
        yield tree, key
        yield from nodes(value)


def other_value(value: Any, rng: Random) -> Any:
    """Gives another value, often one of the same type."""
    if rng.random() < 0.4:
        return rng.choice(ODD_VALUES)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return rng.choice([value + 1, value - 1, -value, value * 2, value // 2, value * 10**6, 2**40])
    if isinstance(value, float):
        return rng.choice([value * 2, -value, value + 1, value * 1e6, float("nan"), float("inf"), 0.0])
    if isinstance(value, str):
        return rng.choice([value[::-1], value.upper(), "", value + "x", rng.choice(ODD_TEXTS)])
    if isinstance(value, list):
        return rng.choice([value[::-1], value[:-1], value * 2, [], [*value, None]])
    if isinstance(value, dict):
        return rng.choice([{}, list(value), value | {"more": 1}])
    return rng.choice(ODD_VALUES)


def edit_tree(tree: Any, rng: Random) -> str:
    """Changes, removes, adds or swaps entries of a tree."""
    places = list(nodes(tree))
    holder, key = rng.choice(places)
    what = rng.random()
    if what < 0.75:
        old, holder[key] = holder[key], other_value(holder[key], rng)
        return f"{key}: {old!r:.40} -> {holder[key]!r:.40}"
    if what < 0.9:
        del holder[key]
        return f"without {key}"
    other, place = rng.choice(places)
    holder[key], other[place] = other[place], holder[key]
    return f"{key} and {place} swapped"


def edit_json(path: Path, rng: Random) -> str:
    """Edits an entry of a JSON file."""
    tree = json.loads(path.read_text())
    said = edit_tree(tree, rng)
    path.write_text(json.dumps(tree, default=str))
    return said


def edit_yaml(path: Path, rng: Random) -> str:
    """Edits an entry of a YAML file."""
    tree = yaml.safe_load(path.read_text())
    said = edit_tree(tree, rng)
    path.write_text(yaml.safe_dump(tree, sort_keys=False, default_flow_style=False))
    return said


def edit_safetensors_header(path: Path, rng: Random) -> str:
    """Edits an entry of the header of a safetensors file."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    tree = json.loads(content[8 : 8 + length])
    metadata = tree.get("__metadata__", {})
    if "tree" in metadata and rng.random() < 0.8:
        inner = json.loads(metadata["tree"])
        said = edit_tree(inner, rng)
        metadata["tree"] = json.dumps(inner, default=str)
    else:
        said = edit_tree(tree, rng)
    header = json.dumps(tree, default=str).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + length :])
    return said


def edit_table(path: Path, rng: Random) -> str:
    """Edits a parquet file: a cell, rows, columns."""
    table = pd.read_parquet(path)
    column = rng.choice(list(table.columns))
    row = rng.randrange(len(table))
    what = rng.randrange(8)
    if what < 3:
        value = other_value(
            table[column].iloc[row].item() if hasattr(table[column].iloc[row], "item") else table[column].iloc[row],
            rng,
        )
        values = table[column].astype(object).tolist()
        values[row] = value if not isinstance(value, (list, dict)) else None
        said = f"{column}[{row}] = {values[row]!r:.40}"
        try:
            table.assign(**{column: values}).to_parquet(path)
        except Exception:  # no column can hold both
            table.assign(**{column: [str(each) for each in values]}).to_parquet(path)
        return said
    changed: dict[int, Callable[[], Any]] = {
        3: lambda: table.drop(columns=column),
        4: lambda: table.drop(index=row),
        5: lambda: pd.concat([table, table.iloc[[row]]]),
        6: lambda: table.iloc[::-1],
        7: lambda: table.sample(frac=1, random_state=rng.randrange(2**31)),
    }
    said = {3: f"without {column}", 4: f"without row {row}", 5: f"row {row} twice", 6: "upside down", 7: "shuffled"}
    changed[what]().to_parquet(path)
    return said[what]


def odd_name(rng: Random) -> str:
    """Gives an odd name that a file can have."""
    text = rng.choice(ODD_TEXTS).replace("/", "\u2215").replace("\x00", "")
    return text.encode()[:180].decode(errors="ignore")


def reseal(run: Path, rng: Random) -> str:
    """Leaves the checksums of a run as they are, takes them away, or makes them anew, as whoever harms files would."""
    sums = run / "mabprune" / "SHA256SUMS"
    how = rng.choice(["sealed", "without checksums", "checksums made anew"])
    if how == "without checksums":
        sums.unlink(missing_ok=True)
    elif how == "checksums made anew" and sums.is_file():
        files = [line.split("  ", 1)[1] for line in sums.read_text().splitlines()]
        there = [name for name in files if (run / name).is_file()]
        digests = {name: hashlib.sha256((run / name).read_bytes()).hexdigest() for name in there}
        sums.write_text("".join(f"{digest}  {name}\n" for name, digest in digests.items()))
    return how
