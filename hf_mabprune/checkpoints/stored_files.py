"""Finds the files of a stored model, in a folder or on the Hub, and reads those that are JSON."""

import json
from pathlib import Path
from typing import Any

from transformers.utils import cached_file

from hf_mabprune.errors import OutsideError, outside

ORIGIN = ("revision", "subfolder", "token", "cache_dir", "local_files_only")  # options that say which files are meant
LARGEST_JSON = 2**28  # bytes; tokenizers of a million words are smaller
SIDE_FILES = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.json",
    "vocab.json",
    "preprocessor_config.json",
    "processor_config.json",
    "table_processor.json",
)


def stored_file(name: str, file: str, **origin: Any) -> Path | None:
    """Finds one file of a stored model; None where it has no such file.

    Args:
        name: Folder or Hub name.
        file: Name of the file in it.
        origin: Options of `from_pretrained`; those of them that say which files are meant count.
    """
    if Path(name).exists():
        path = Path(name) / (origin.get("subfolder") or "") / file
        return path if path.is_file() else None
    with outside(f"{file} of {name} cannot be fetched"):
        found = cached_file(
            name,
            file,
            **{option: origin[option] for option in ORIGIN if option in origin},
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
    return Path(found) if found else None


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON file of a stored model, which holds a mapping.

    Raises:
        OutsideError: If it is no JSON file, no mapping, or larger than any model's.
    """
    content: dict[str, Any] = _read(path, dict, "mapping")
    return content


def read_json_list(path: Path) -> list[Any]:
    """Reads a JSON file that holds a list; else as `read_json`."""
    content: list[Any] = _read(path, list, "list")
    return content


def _read(path: Path, kind: type, name: str) -> Any:
    with outside(f"{path} cannot be read", "fetch or save the model again"):
        if path.stat().st_size > LARGEST_JSON:
            raise ValueError(f"it is larger than {LARGEST_JSON >> 20} MiB")
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, kind):
            raise ValueError(f"it must hold a {name}, got {type(content).__name__}")
    return content


def broken_side_file(name: str, **origin: Any) -> str:
    """Says which file beside a model is no JSON file; nothing where all are. Arguments as those of `stored_file`."""
    for file in SIDE_FILES:
        try:
            path = stored_file(name, file, **origin)
            _ = path and read_json(path)
        except OutsideError as error:
            return str(error)
    return ""
