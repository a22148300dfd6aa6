"""What the card of the dense model says that holds for the pruned one too: its license and its languages.

Nothing else is taken over: its evaluation results, above all, are those of other weights.
"""

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard
from huggingface_hub.constants import REPOCARD_NAME
from huggingface_hub.errors import HTTPError

from hf_mabprune.artifacts.markdown import LONGEST_NAME
from hf_mabprune.artifacts.redaction import hub_model, public_url
from hf_mabprune.evaluation.report import Report

OTHER = "other"  # what the Hub calls a license that it has no name for
LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*|code|multilingual")
NAME = re.compile(r"[\w. -]{1,100}")


@dataclass(frozen=True)
class Origin:
    """What a pruned model takes over from the dense one.

    Attributes:
        license: Identifier, e.g. "apache-2.0"; `other` where the Hub has none.
        license_name: What a license is called that is `other`.
        license_link: Address of its text.
        language: Codes of the languages that the model was made for.
    """

    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    language: Sequence[str] = ()


def read_origin(report: Report, base_model: str | None, token: str | None, license: str | None = None) -> Origin:
    """Reads the dense model's own card, in its folder or else on the Hub; nothing where none can be read.

    Args:
        report: Report of the run, which names the model.
        base_model: Hub name of the model; None takes the report's where that looks like one.
        token: For models that not everybody may read.
        license: What the user says of it, which goes before what the card says.
    """
    local, name = Path(report.model) / REPOCARD_NAME, base_model or hub_model(report.model)
    found = Origin()
    for card in ([local] if local.is_file() else []) + ([name] if name else []):
        with suppress(OSError, ValueError, HTTPError, yaml.YAMLError):
            found = origin_of(ModelCard.load(card, token=token, ignore_metadata_errors=True).data.to_dict(), name)
            if found.license:
                break
    given = license is not None and license != found.license
    return replace(found, license=license, license_name=None, license_link=None) if given else found


def origin_of(metadata: dict[str, Any], name: str | None) -> Origin:
    """Takes over what holds for both models.

    Args:
        metadata: Block of YAML at the beginning of a card.
        name: Hub name of its model, where a link to a file in it leads.
    """
    license = metadata.get("license")
    said = metadata.get("language")
    languages = [said] if isinstance(said, str) else said if isinstance(said, list) else []
    language = [code for code in languages if isinstance(code, str) and LANGUAGE.fullmatch(code)]
    if not isinstance(license, str):
        return Origin(language=language)
    if license != OTHER:
        return Origin(license, language=language)
    given = metadata.get("license_name")
    return Origin(
        license,
        given if isinstance(given, str) and NAME.fullmatch(given) else None,
        _link(metadata.get("license_link"), name),
        language,
    )


def _link(link: Any, name: str | None) -> str | None:
    """Gives the address of a license: that which the card names, a file beside it, or else its model's page."""
    if isinstance(link, str) and re.match(r"https?://\S+$", link) and len(link) <= LONGEST_NAME:
        return public_url(link)
    if not name:
        return None
    page = f"https://huggingface.co/{name}"
    inside = isinstance(link, str) and re.fullmatch(r"[\w][\w.-]*", link)
    return f"{page}/blob/main/{link}" if inside else page
