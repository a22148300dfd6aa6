"""Tells whether the code that lies beside per-layer weights is this package's own."""

import hashlib
import inspect
import warnings
from pathlib import Path
from typing import Any

from hf_mabprune.checkpoints import modeling_pruned
from hf_mabprune.checkpoints.stored_files import stored_file

MODELING_FILE = "modeling_pruned.py"
EARLIER: frozenset[str] = frozenset()  # SHA-256 of the file in earlier releases; there is none


def is_own_modeling_file(path: str | Path) -> bool:
    """Tells whether a file is this package's `modeling_pruned.py`, byte for byte, or that of an earlier release."""
    own = Path(inspect.getfile(modeling_pruned)).read_bytes()
    content = Path(path).read_bytes()
    return content == own or hashlib.sha256(content).hexdigest() in EARLIER


def check_code(name: str, settings: dict[str, Any], trusted: bool, **origin: Any) -> None:
    """Notices code in a checkpoint that takes the place of this package's own.

    Where remote code may run, that code may, so it is refused. Else the package's own class loads the weights, and
    the code is only dangerous to whoever trusts it later: a warning.

    Args:
        name: Folder or Hub name.
        settings: Contents of its config.json.
        trusted: Whether the user allows remote code.
        origin: Options of `from_pretrained` that say which files are meant, e.g. `revision`.

    Raises:
        ValueError: If strange code might run.
    """
    strange = _strange_code(name, settings, origin)
    if strange and trusted:
        raise ValueError(f"{strange}, and might be run: read it, or leave model.trust_remote_code out")
    if strange:
        warnings.warn(f"{strange}; it was not run: do not trust it elsewhere", stacklevel=2)


def _strange_code(name: str, settings: dict[str, Any], origin: dict[str, Any]) -> str:
    """Says which code is not the package's own; nothing where all is as it should be."""
    file = stored_file(name, MODELING_FILE, **origin)
    if file is not None and not is_own_modeling_file(file):
        return f"{MODELING_FILE} of {name} is not the one of this version of hf_mabprune"
    if str(settings.get("model_type")).startswith(modeling_pruned.TYPE_PREFIX):
        module = MODELING_FILE.removesuffix("py")
        named = settings.get("auto_map") or {}
        for place in named.values() if isinstance(named, dict) else [named]:
            if not isinstance(place, str) or not place.startswith(module + modeling_pruned.CLASS_PREFIX):
                return f"auto_map in config.json of {name} names {place!r:.99}, which is not of hf_mabprune"
    return ""
