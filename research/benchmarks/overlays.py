"""Settings put over settings: what a suite changes in a run's file, an overlay in a suite, a command line in both."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

WHOLE = ("dataset", "criterion", "policy", "rule")  # parts that an overlay replaces, for their keys belong together


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Puts a mapping over another one, key by key; `WHOLE` names what is replaced."""
    result = dict(base)
    for key, value in over.items():
        deep = isinstance(value, Mapping) and isinstance(result.get(key), Mapping) and key not in WHOLE
        result[key] = merged(result[key], value) if deep else value
    return result


def dotted(arguments: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Gives a mapping for each override of a command line.

    Args:
        arguments: Words such as `--runs.sst2.model.name DIR`; values are YAML.

    Raises:
        ValueError: For words that come in no pairs.
    """
    words = [part for word in arguments for part in (word.split("=", 1) if word.startswith("--") else [word])]
    if len(words) % 2 or not all(word.startswith("--") for word in words[::2]):
        raise ValueError(f"overrides come in pairs, --runs.NAME.model.name VALUE, got '{' '.join(arguments)}'")
    for name, value in zip(words[::2], words[1::2], strict=True):
        nested = yaml.safe_load(value)
        for part in reversed(name.removeprefix("--").split(".")):
            nested = {part: nested}
        yield nested
