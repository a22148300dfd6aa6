"""Keeps local paths and credentials out of what is published: of paths the last part stays, URLs lose credentials and
queries. What is the name of something on the Hub, and what is a path, is told apart here too."""

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import transformers
import yaml
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from hf_mabprune.config import SAMPLE_TEXT, PruneConfig, check, parse_yaml
from hf_mabprune.data.loaders import FILE_LOADERS
from hf_mabprune.errors import without_credentials, without_credentials_in
from hf_mabprune.evaluation.report import Report

NOT_ON_THE_HUB = {*FILE_LOADERS, "in-memory", SAMPLE_TEXT}  # loaders, data handed over in Python, and our own
ABSOLUTE = re.compile(r"(?<![\w:/\\.~<-])(?:~|[A-Za-z]:|\.{1,2}|file:/{2})?(?:[/\\]+[\w.@+~-]+)+[/\\]?")


def public_config(config_yaml: str) -> str:
    """Gives the config as text that can be published: the same text where it holds no local path and no credentials.

    Args:
        config_yaml: The resolved config of a run.

    Raises:
        ValueError: If it is no config.
    """
    original = without_credentials_in(parse_yaml(config_yaml, "the config of the run"))
    public = _public(original, files_are_local=hub_dataset(check(original)) is None)
    return yaml.safe_dump(public, sort_keys=False)  # a comment, or what cannot be seen, is no part of it


def public_report(report: Report) -> str:
    """Gives the JSON of a report as text that can be published: no local paths."""
    named = {"model": _public(report.model, "name"), "dataset": _public(report.dataset, "path")}
    return json.dumps(without_credentials_in(_texts_without_paths(asdict(report)) | named), indent=2)


def public_url(url: str) -> str:
    """Gives the address without credentials and query; of a local file only the last part."""
    url = without_credentials(url)
    try:
        parts = urlsplit(url)
    except ValueError:  # an address in brackets that is none
        return last_part(url)
    if parts.scheme == "file":
        return last_part(url)
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}"


def without_paths(text: str) -> str:
    """Gives free text with every absolute path in it cut to its last part, and without credentials."""
    return ABSOLUTE.sub(lambda match: last_part(match.group()), without_credentials(text))


def last_part(path: str) -> str:
    """Gives what a file or folder is called, without where it lies."""
    return re.split(r"[/\\]+", path.rstrip("/\\"))[-1] or "root"


def is_repo_id(name: str) -> bool:
    """Tells whether something on the Hub could bear the name."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return name.isprintable()


def hub_model(name: str) -> str | None:
    """Gives the name where it can be one on the Hub: no folder, and not the class of a model made in memory."""
    made_in_memory = "/" not in name and hasattr(transformers, name)
    return name if is_repo_id(name) and not made_in_memory and not _is_there(name) else None


def hub_dataset(settings: PruneConfig) -> str | None:
    """Gives the name of the data set where it can be one on the Hub: no folder, no loader of files, not in memory."""
    path = settings.task.dataset.path
    local = path in NOT_ON_THE_HUB or not is_repo_id(path) or _is_there(path)
    return None if local else path


def _public(value: Any, key: str = "", files_are_local: bool = True) -> Any:
    """Copies a part of the config, with local paths cut to their last part."""
    if isinstance(value, dict):
        inner = "data_files" if key == "data_files" else None
        return {name: _public(part, inner or name, files_are_local) for name, part in value.items()}
    if isinstance(value, list):
        return [_public(part, key, files_are_local) for part in value]
    if not isinstance(value, str):
        return value
    if "://" in value:
        return public_url(value)
    paths = {"dir", "keep", "data_files"} if files_are_local else {"dir", "keep"}
    is_local = key in {"name", "path"} and (not is_repo_id(value) or _is_there(value))
    return last_part(value) if key in paths or is_local or _is_absolute(value) else value


def _texts_without_paths(value: Any) -> Any:
    """Copies nested data, with every absolute path in its texts cut to its last part."""
    if isinstance(value, dict):
        return {name: _texts_without_paths(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_texts_without_paths(part) for part in value]
    return without_paths(value) if isinstance(value, str) else value


def _is_absolute(text: str) -> bool:
    return re.match(r"[/\\~]|[A-Za-z]:[/\\]|\.{1,2}[/\\]", text) is not None


def _is_there(path: str) -> bool:
    """Tells whether something lies at a path; nothing does where the path cannot be one."""
    try:
        return Path(path).exists()
    except (OSError, ValueError):
        return False
