"""Checks what a config.json says before a config is made of it: it is data, and not trusted.

transformers writes every key that it does not know onto the config object, makes lists as long as numbers say, and
fetches attention kernels by name.
"""

import math
import re
from collections.abc import Iterator
from typing import Any

from transformers import PreTrainedConfig

from hf_mabprune.errors import outside

DEEPEST = 16  # levels of mappings and lists
LARGEST = 2**63 - 1
MOST = 10**5  # layers, heads, labels, ...: lists are made of them
COUNTS = re.compile(r"(^|_)(num|n)_|(layers|labels|heads)$")
IMPLEMENTATIONS = re.compile(r"_(attn|experts)_implementation(_internal)?$|^(attn|experts)_implementation$")
PLAIN_NAME = re.compile(r"\w+$")  # what is no name of a kernel on the Hub
SIZES = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "vocab_size",
    "max_position_embeddings",
    "num_local_experts",
)


def check_fields(settings: Any, trusted: bool = False) -> None:
    """Refuses what no model's config.json says: numbers without end, other types, methods, code from elsewhere.

    Args:
        settings: Contents of config.json.
        trusted: Whether the user allows remote code.

    Raises:
        ValueError: With the field and its value.
    """
    if not isinstance(settings, dict):
        raise ValueError(f"it must hold a mapping, got {type(settings).__name__}")
    for key, value in _fields(settings):
        name = key.rpartition(".")[2]
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            _check_number(key, name, value)
        if IMPLEMENTATIONS.search(name) and not trusted:
            for named in value.values() if isinstance(value, dict) else [value]:
                if named is not None and not PLAIN_NAME.match(str(named)):
                    raise ValueError(f"{key} names {named!r:.99}, code from elsewhere, which the config cannot choose")
    for key in settings:
        known = getattr(PreTrainedConfig, key, None)
        if key == "attribute_map" or key.startswith("__") or (callable(known) and not isinstance(known, type)):
            raise ValueError(f"{key} is no setting of a model")
    classes = settings.get("architectures")
    if classes is not None and not (isinstance(classes, list) and all(isinstance(each, str) for each in classes)):
        raise ValueError(f"architectures must be a list of names, got {classes!r:.60}")


def check_sizes(config: PreTrainedConfig) -> None:
    """Refuses sizes that are no sizes, under the names that all families share.

    Raises:
        ValueError: With the field and its value.
    """
    for name in SIZES:
        with outside(f"{name} cannot be read"):
            value = getattr(config, name, None)
        if isinstance(value, (bool, float, str)) or (isinstance(value, int) and value < 1):
            raise ValueError(f"{config.attribute_map.get(name, name)} must be an integer > 0, got {value!r:.60}")


def _fields(value: Any, key: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Goes through all values, inner ones too, with their dotted keys."""
    if depth > DEEPEST:
        raise ValueError(f"{key:.60} is nested too deeply")
    if key:
        yield key, value
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _fields(inner, f"{key}.{name}" if key else str(name), depth + 1)
    elif isinstance(value, list):
        for inner in value:
            yield from _fields(inner, f"{key}.", depth + 1)


def _check_number(key: str, name: str, value: float) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{key} must be finite, got {value}")
    if abs(value) > LARGEST:
        raise ValueError(f"{key} must be below 2**63, got about {value:.1e}")
    if COUNTS.search(name) and abs(value) > MOST:
        raise ValueError(f"{key} must be at most {MOST:,}, got {value}")
