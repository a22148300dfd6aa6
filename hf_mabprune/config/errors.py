"""What is said about settings: the keys that there are, what each may hold, and what is wrong with one, in words."""

from collections.abc import Mapping
from functools import cache
from typing import Any, get_args, get_origin

from pydantic import BaseModel

from hf_mabprune.errors import beginning, one_line
from hf_mabprune.registry import nearest

NAMES = {
    "string": "a string",
    "integer": "an integer",
    "number": "a number",
    "boolean": "true or false",
    "null": "null",
    "object": "a mapping",
}
OF_THE_COMMAND_LINE = ("config", "plugin", "resume")  # options that are no settings
LIMITS = {"exclusiveMinimum": ">", "minimum": ">=", "exclusiveMaximum": "<", "maximum": "<="}


def explain(fault: Mapping[str, Any], kind: type[BaseModel]) -> str:
    """Says in one line where a setting is wrong, what it may be, and what was given.

    Args:
        fault: An entry of `ValidationError.errors()`.
        kind: Class of the settings that were validated, e.g. `PruneConfig`.
    """
    where = one_line(".".join(str(part) for part in fault["loc"]))
    if fault["type"] == "extra_forbidden":
        return _unknown_key(where, kind, fault["loc"][:-1])
    if fault["type"] == "missing":
        return f"missing key '{where}'"
    whole_part = isinstance(fault["input"], dict | BaseModel) and fault["type"] != "other_type"
    given = "" if whole_part else f", got {shown(fault['input'])}"
    if fault["type"] == "value_error":
        message = fault["msg"].removeprefix("Value error, ")
        return f"{where}: {message}{given}" if where else f"{message}{given}"
    types = known_types(kind)
    while where not in types and "." in where:  # pydantic goes on below the key, to items and alternatives
        where = where.rpartition(".")[0]
    return f"{where or 'a config'} must be {types.get(where, NAMES['object'])}{given}"


def shown(value: Any) -> str:
    """Shows a value that is wrong, in one short line."""
    try:
        text = repr(value)
    except Exception:  # of an object that somebody hands over, or a number of too many digits
        text = f"a {type(value).__name__}"
    return beginning(one_line(text), 200)


def _unknown_key(where: str, kind: type[BaseModel], path: tuple[str | int, ...]) -> str:
    """Names the nearest known key: one of the same part, or else one of that name elsewhere."""
    if where in OF_THE_COMMAND_LINE:
        return f"'{where}' is for the command line, --{where}: leave it out of the config"
    key, prefix = where.rpartition(".")[2], "".join(f"{step}." for step in path)
    guess = nearest(key, _known_keys(kind, path), prefix)
    elsewhere = [known for known in known_types(kind) if known.rpartition(".")[2] == key]
    return f"unknown key '{where}'." + (f" Did you mean '{elsewhere[0]}'?" if elsewhere else guess)


@cache
def known_types(kind: type[BaseModel], prefix: str = "") -> dict[str, str]:
    """Maps the dotted path of every key to what it may hold, in words, e.g. `an integer > 0, or null`.

    Args:
        kind: Class of the settings, e.g. `PruneConfig`.
        prefix: Path of that part in a larger config, with the dot at its end.
    """
    schema = kind.model_json_schema()
    types = {}
    for name, field in kind.model_fields.items():
        types[prefix + name] = _type_text(schema["properties"][name])
        if inner := part_of(field.annotation):
            types |= known_types(inner, f"{prefix}{name}.")
    return types


def _known_keys(kind: type[BaseModel], path: tuple[str | int, ...]) -> list[str]:
    """Lists the keys that settings of a kind know at a place."""
    part = kind
    for step in path:
        part = part_of(part.model_fields[str(step)].annotation) or part
    return list(part.model_fields)


def part_of(annotation: Any) -> type[BaseModel] | None:
    """Gives the part of a config that a field holds, or may hold; None for plain values."""
    options = [kind for kind in (annotation, *get_args(annotation)) if get_origin(kind) is None]
    return next((option for option in options if isinstance(option, type) and issubclass(option, BaseModel)), None)


def _type_text(schema: dict[str, Any]) -> str:
    """Puts a JSON schema in words."""
    if "anyOf" in schema:
        return ", or ".join(_type_text(option) for option in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return " | ".join(schema.get("enum", [schema.get("const")]))
    if schema.get("type") == "array":
        words = _type_text(schema["items"])
        items = {"a string": "strings"}.get(
            words, words.replace("a number", "numbers").replace("an amount", "amounts")
        )
        return f"a {'non-empty ' if schema.get('minItems') else ''}list of {items}"
    if "examples" in schema:
        return f"an amount such as {schema['examples'][0]}"
    limits = " and ".join(f"{sign} {schema[limit]:g}" for limit, sign in LIMITS.items() if limit in schema)
    return f"{NAMES[schema.get('type', 'object')]} {limits}".rstrip()
