"""Options of the loaders of local files: checked against what the loader knows, plain values only."""

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, get_args, get_type_hints

from datasets import BuilderConfig, DatasetBuilder
from pydantic import TypeAdapter, ValidationError

from hf_mabprune.registry import nearest

COMMON = {field.name for field in fields(BuilderConfig)}  # of every loader, set by other keys
PLAIN = (str, int, float, bool, type(None))


def check_options(loader: type[DatasetBuilder], path: str, options: Mapping[str, Any]) -> None:
    """Refuses options that a loader does not know, or whose values are of another kind than it expects.

    Args:
        loader: Class of the loader.
        path: What the config calls it, for messages.
        options: Name -> value, as YAML gives them.

    Raises:
        ValueError: For the first option that is wrong; the message names the nearest known one, or the expected kind.
    """
    known = _known(loader)
    for name, value in options.items():
        if name not in known:
            raise ValueError(
                f"task.dataset.options: the loader '{path}' has no option '{name}'.{nearest(str(name), known)} "
                f"Its options: {', '.join(known) or 'none'}"
            )
        try:
            TypeAdapter(known[name]).validate_python(value, strict=True)
        except ValidationError:
            kind = getattr(known[name], "__name__", "") if not get_args(known[name]) else str(known[name])
            raise ValueError(
                f"task.dataset.options.{name} must be {kind.replace('typing.', '')}, got {value!r}"
            ) from None


def _known(loader: type[DatasetBuilder]) -> dict[str, Any]:
    """Gives option -> kind of value, without those that a YAML file has no value for."""
    config = loader.BUILDER_CONFIG_CLASS
    kinds = get_type_hints(config)
    return {
        field.name: kinds[field.name]
        for field in fields(config)
        if field.name not in COMMON and _takes_plain_values(kinds[field.name])
    }


def _takes_plain_values(kind: Any) -> bool:
    """Tells whether a kind of value is made of texts, numbers and lists alone; functions and objects are not."""
    parts = [part for part in get_args(kind) if not isinstance(part, str)]
    if kind in PLAIN or kind is list or (not parts and get_args(kind)):  # all its parts are texts: a choice
        return True
    return bool(parts) and kind is not Callable and all(map(_takes_plain_values, parts))
