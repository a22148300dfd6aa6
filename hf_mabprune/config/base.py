"""What every part of a config is built on: settings that are checked once and then stay as they are."""

from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from hf_mabprune.config.errors import explain

C = TypeVar("C", bound="Strict")


class Strict(BaseModel):
    """A part of a config: unknown keys are refused, and nothing changes after checking."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=False)


def check_as(settings: dict[str, Any], kind: type[C]) -> C:
    """Validates a nested dict of settings of some kind.

    Args:
        settings: A YAML file's content; settings left out take their defaults.
        kind: Class of the settings, e.g. `PruneConfig`.

    Raises:
        ValueError: One line a fault, which names the wrong key and the nearest known one, or the rule that is broken.
    """
    try:
        return kind.model_validate(settings)
    except ValidationError as error:
        raise ValueError("\n".join(dict.fromkeys(explain(fault, kind) for fault in error.errors()))) from None
