"""Reads YAML from anybody: plain data, or one line that says where it cannot be used and why.

Limits hold before anything is built, so no text, however hostile, takes longer than a moment: on bytes, on nesting,
and on what aliases and merge keys expand to. What YAML reads in more than one way is not guessed: a key that is there
twice, a tag of one's own, a second document. Numbers are decimal (010 and 1:30 are words), dates are words.
"""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from hf_mabprune.errors import beginning, outside

MAX_BYTES = 2**20
MAX_DEPTH = 32
MAX_ANCHORS = 1000
MAX_NODES = 25_000  # after aliases are expanded
MAX_DIGITS = 400  # of a number, more than any has
PLAIN = {f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str", "seq", "map", "merge")}
NUMBER, MERGE = "tag:yaml.org,2002:float", "tag:yaml.org,2002:merge"
UNREADABLE = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\x7f\ufffe\uffff\ud800-\udfff]")


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """A loader of plain data whose numbers are those of YAML 1.2."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [
            (tag, pattern)
            for tag, pattern in resolvers
            if not tag.endswith((":int", ":float", ":timestamp", ":value"))
        ]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"[-+]?(0|[1-9][0-9]*)\Z"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    NUMBER,
    re.compile(
        r"([-+]?(\.[0-9]+|[0-9]+\.[0-9]*)([eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))\Z"
    ),
    list("-+.0123456789"),
)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Reads a YAML file that holds a mapping.

    Raises:
        ValueError: If it does not, in one line that names the file and, where there is one, the line in it.
        OSError: If it is no file that can be read.
    """
    content = parse_yaml(_text_of(Path(path)), str(path))
    if not isinstance(content, dict):
        given = "an empty file" if content is None else beginning(str(content), 80)
        raise ValueError(f"{path} must hold a mapping of settings, got {given}")
    return content


def parse_yaml(text: str, where: str) -> Any:
    """Reads YAML text that holds plain data: None, truth values, finite numbers, strings, lists, and mappings with
    strings for keys.

    Args:
        text: One document.
        where: What the text is of, for messages, e.g. a path or an option.

    Raises:
        ValueError: One line that says where it cannot be used and why.
    """
    if len(text) > MAX_BYTES:
        raise ValueError(f"{where} must be at most {MAX_BYTES:,} bytes long: it is no config")
    if unreadable := UNREADABLE.search(text):
        raise ValueError(f"{where} must be plain text, got the character {unreadable.group()!r} in it")
    try:
        _check_events(text, where)
        node = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        reason = ", ".join(filter(None, (error.context, error.problem)))
        raise ValueError(f"{where}{line} is no YAML: {reason}") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{where} is no YAML: {' '.join(str(error).split())}") from None
    if node is None:
        return None
    _expanded(node, where, {}, set())
    return _value(node, where)


def _text_of(path: Path) -> str:
    """Reads a file that is to be a config, and no more of it than a config can have."""
    if not path.exists():
        raise FileNotFoundError(f"no config file '{path}'; paths are relative to {Path.cwd()}")
    if not path.is_file():
        kind = "a folder" if path.is_dir() else "no regular file"
        raise ValueError(f"the config '{path}' is {kind}: give a YAML file")
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"{path} must be at most {MAX_BYTES:,} bytes long: it is no config")
    with outside(f"{path} cannot be read", "save it as plain text in UTF-8"):
        return content.decode("utf-8-sig")


def _check_events(text: str, where: str) -> None:
    """Refuses what is too much or too deep, and several documents, while nothing but the stream of events is there."""
    depth = documents = nodes = anchors = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.DocumentStartEvent):
            documents += 1
        if isinstance(event, yaml.NodeEvent):
            nodes += 1
            anchors += event.anchor is not None
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        place = _place(where, event)
        if documents > 1:
            raise ValueError(f"{place}: a second document begins; a config is one document, without ---")
        if depth > MAX_DEPTH:
            raise ValueError(f"{place}: it is nested more than {MAX_DEPTH} levels deep: it is no config")
        if nodes > MAX_NODES or anchors > MAX_ANCHORS:
            raise ValueError(f"{place}: it holds more values or aliases than any config")


def _expanded(node: Node, where: str, known: dict[int, int], open_nodes: set[int]) -> int:
    """Counts the nodes below a node, its aliases expanded, and refuses those that are no plain data.

    Args:
        node: A node of the document.
        where: What the text is of.
        known: Counts of the nodes seen so far, by identity.
        open_nodes: Identities of the nodes that the node lies in.

    Raises:
        ValueError: For what is too large, contains itself, has a tag of its own, or a key twice.
    """
    if id(node) in known:
        return known[id(node)]
    place = _place(where, node)
    if id(node) in open_nodes:
        raise ValueError(f"{place}: an alias contains itself")
    if node.tag not in PLAIN:
        raise ValueError(f"{place}: the tag {_short(node.tag)} is not allowed: a config is plain data")
    inner = open_nodes | {id(node)}
    if isinstance(node, MappingNode):
        _check_keys(node, where)
    count = 1 + sum(_expanded(child, where, known, inner) for child in _children(node))
    if count > MAX_NODES:
        raise ValueError(f"{place}: it expands to more than {MAX_NODES:,} values: it is no config")
    known[id(node)] = count
    return count


def _children(node: Node) -> Iterator[Node]:
    """Gives the nodes that a node holds."""
    if isinstance(node, SequenceNode):
        yield from node.value
    elif isinstance(node, MappingNode):
        for pair in node.value:
            yield from pair


def _check_keys(node: MappingNode, where: str) -> None:
    """Refuses keys that are no strings, or there twice."""
    seen = set()
    for key, _ in node.value:
        place = _place(where, key)
        if not isinstance(key, ScalarNode) or key.tag not in ("tag:yaml.org,2002:str", MERGE):
            given = _short(key.value or "null") if isinstance(key, ScalarNode) else "a list or a mapping"
            raise ValueError(f"{place}: a key must be a string, got {given}: put it in quotes")
        if key.value in seen:
            raise ValueError(f"{place}: the key {_short(key.value)} is there twice: leave one of them out")
        seen.add(key.value)


def _value(node: Node, where: str) -> Any:
    """Makes plain data of a node that `_expanded` has passed."""
    if isinstance(node, SequenceNode):
        return [_value(child, where) for child in node.value]
    if isinstance(node, MappingNode):
        own = {key.value: _value(value, where) for key, value in node.value if key.tag != MERGE}
        for value in (value for key, value in node.value if key.tag == MERGE):
            merged = value.value if isinstance(value, SequenceNode) else [value]
            for part in merged:  # the first that has a key sets it
                if not isinstance(part, MappingNode):
                    raise ValueError(f"{_place(where, node)}: << takes mappings")
                own = _value(part, where) | own
        return own
    try:
        return _scalar(node.tag.rpartition(":")[2], node.value)
    except (KeyError, ValueError):  # a tag that the text does not bear out, an overflow
        kind = {"int": "integer", "float": "finite number", "bool": "truth value"}[node.tag.rpartition(":")[2]]
        raise ValueError(f"{_place(where, node)}: {_short(node.value)} is no {kind} that a config can hold") from None


def _scalar(kind: str, text: str) -> Any:
    """Reads a scalar of a kind; raises KeyError or ValueError where the text is nothing of the kind."""
    if kind == "bool":
        return yaml.SafeLoader.bool_values[text.lower()]
    if kind not in ("int", "float"):
        return None if kind == "null" else text
    if len(text) > MAX_DIGITS:
        raise ValueError("too long")
    number = int(text) if kind == "int" else float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    if not -math.inf < number < math.inf:
        raise ValueError("not finite")
    return number


def _place(where: str, part: Any) -> str:
    """Says in which line a node or an event begins."""
    return f"{where}, line {part.start_mark.line + 1}"


def _short(text: str) -> str:
    """Quotes the beginning of a text."""
    return repr(beginning(text, 60))
