"""Puts names and messages into Markdown as they are: none becomes markup, breaks a table or makes a link."""

import re
from typing import Any

from hf_mabprune.errors import beginning, one_line

LONGEST_NAME, LONGEST_TEXT = 200, 2000
ENTITIES = {
    **{sign: f"&#{ord(sign)};" for sign in "\\`|@$"},  # a table's cells end at |, whatever a backslash says
    "&": "&amp;",
    "<": "&lt;",
    ">": "&gt;",
    "://": ":&#47;&#47;",  # many readers make links of plain addresses
    "www.": "www&#46;",
    **{sign: f"\\{sign}" for sign in "*_[]~"},
}
LIVE = re.compile("|".join(map(re.escape, ENTITIES)), re.I)


def text(value: Any, longest: int = LONGEST_TEXT) -> str:
    """Gives Markdown that shows a value as it is, in one line: within a sentence, a heading or a cell of a table."""
    return LIVE.sub(lambda found: ENTITIES[found.group().lower()], beginning(one_line(str(value)), longest))


def code(value: Any) -> str:
    """Gives Markdown that shows a value as a code span; as text, where a code span could not hold it in a table."""
    shown = beginning(one_line(str(value)), LONGEST_NAME)
    return text(shown) if re.search(r"[`|\\]", shown) or not shown else f"`{shown}`"


def fenced(content: str, language: str) -> str:
    """Gives a block of code whose fence is longer than any in it."""
    longest = max(map(len, re.findall("`+", content)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{content}\n{fence}"
