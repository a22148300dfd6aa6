"""What every part of a config is built on: settings that are checked once and then stay as they are."""

import math
import os
import re
from collections.abc import Iterator
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError, field_validator
from pydantic_core import PydanticCustomError
from pydantic_core.core_schema import ValidationInfo

from hf_mabprune.config.errors import explain, part_of, shown
from hf_mabprune.errors import one_line
from hf_mabprune.registry import takes

C = TypeVar("C", bound="Strict")
MAX_DEPTH = 32
MAX_VALUES = 20_000
LARGEST = 2**32 - 1  # as an integer, and more than any setting has use for
MAY_BE_EMPTY = {"prefix", "dir", "device_map"}
Place = Annotated[str, AfterValidator(os.path.expanduser)]
"""A path or a name; `~` becomes the home folder, once and here."""


class Strict(BaseModel):
    """A part of a config: unknown keys are refused, no value is taken for one of another type, and nothing changes
    after checking.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=False)

    @field_validator("*", mode="before")
    @classmethod
    def _is_of_the_type(cls, value: Any, info: ValidationInfo) -> Any:
        name, annotation = str(info.field_name), cls.model_fields[str(info.field_name)].annotation
        if not takes(annotation, value):
            raise PydanticCustomError("other_type", "another type")
        checked = name not in MAY_BE_EMPTY and part_of(annotation) is None
        if checked and any(isinstance(text, str) and not text.strip() for text in _values(value)):
            raise ValueError("must not be an empty string: leave the key out, or name something")
        return value


def check_as(settings: dict[str, Any], kind: type[C]) -> C:
    """Validates a nested dict of settings of some kind.

    Args:
        settings: A YAML file's content; settings left out take their defaults.
        kind: Class of the settings, e.g. `PruneConfig`.

    Raises:
        ValueError: One line a fault, which names the wrong key and the nearest known one, or the rule that is broken.
    """
    _check_plain(settings)
    try:
        return kind.model_validate(settings)
    except ValidationError as error:
        raise ValueError("\n".join(dict.fromkeys(explain(fault, kind) for fault in error.errors()))) from None


def _check_plain(settings: Any) -> None:
    """Refuses what no setting can be, wherever it stands: settings may be anything that somebody hands over in Python.

    Raises:
        ValueError: For numbers that are not finite or too large, keys that are no strings, and what has no end.
    """
    left: list[tuple[str, Any, int]] = [("", settings, 0)]
    for _ in range(MAX_VALUES):
        if not left:
            return
        where, value, depth = left.pop()
        if depth > MAX_DEPTH:
            raise ValueError(f"{where.partition('.')[0]} is nested more than {MAX_DEPTH} levels deep")
        if isinstance(value, dict):
            for key, inner in value.items():
                if not isinstance(key, str):
                    raise ValueError(f"{where or 'a config'}: a key must be a string, got {shown(key)}")
                left.append((f"{where}.{key}" if where else key, inner, depth + 1))
        elif isinstance(value, (list, tuple)):
            left += [(where, inner, depth + 1) for inner in value]
        elif fault := _fault_of(value):
            raise ValueError(f"{one_line(where)} {fault}")
    raise ValueError(f"a config must hold at most {MAX_VALUES:,} values")


def _fault_of(value: Any) -> str:
    """Says what is wrong with a single value; nothing where it is plain."""
    if isinstance(value, str) and re.search("[\0\ud800-\udfff]", value):
        return f"must be text in UTF-8 without NUL characters, got {shown(value)}"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return ""
    if isinstance(value, float) and not math.isfinite(value):
        return f"must be a finite number, got {value}"
    if abs(value) > LARGEST:
        return f"is too large: numbers are at most {LARGEST:,}"
    return "must not be -0.0: write 0" if value == 0 and math.copysign(1, value) < 0 else ""


def _values(value: Any) -> Iterator[Any]:
    """Gives the values that a list or a mapping holds, and the keys; a value alone as it is."""
    if isinstance(value, dict):
        yield from value
    if isinstance(value, (dict, list, tuple)):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _values(inner)
    else:
        yield value
