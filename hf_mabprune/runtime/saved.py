"""A search on disk: one safetensors file, and what tells one run from another."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import torch
from torch import nn

from hf_mabprune.errors import OutsideError, outside
from hf_mabprune.runtime.hashes import sha256_of_batches, sha256_of_weights
from hf_mabprune.states import Entry, Items, Part, Text, read_state

FORMAT = "5"
BLANK = "0" * 64  # in the place of a checksum, while it is taken
CHECKSUM = re.compile(rb'"checksum":"([0-9a-f]{64})"')  # quotes inside of other strings are escaped
SAVE_EVERY = 60.0  # seconds between saves within a round of a search, or within a training
REMEDY = "start anew with output.overwrite: true and without --resume"
RUN: Mapping[str, Entry] = {"fingerprint": Text(), "earlier": Items(Part()), "search": Part()}


def fingerprint(model: nn.Module, batches: Iterable[Mapping[str, torch.Tensor]]) -> str:
    """Tells models and data apart: a hash of all weights and of all tokens."""
    return f"{sha256_of_weights(model)} {sha256_of_batches(batches)}"


def pack(state: dict[str, Any]) -> bytes:
    """Nested dicts of arrays and JSON values as one safetensors file, with a checksum over all of it."""
    arrays: dict[str, np.ndarray] = {}

    def strip(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            arrays[str(len(arrays))] = np.ascontiguousarray(value)
            return {"array": str(len(arrays) - 1)}
        if isinstance(value, np.generic):
            return value.item()
        if isinstance(value, dict):
            return {name: strip(part) for name, part in value.items()}
        return [strip(part) for part in value] if isinstance(value, list | tuple) else value

    tree = json.dumps(strip(state))
    blank = safetensors.numpy.save(arrays, metadata={"format": FORMAT, "tree": tree, "checksum": BLANK})
    return CHECKSUM.sub(rb'"checksum":"%s"' % _checksum(blank).encode(), blank, count=1)


def unpack(saved: bytes, path: Path) -> dict[str, Any]:
    """What `pack` packed.

    Raises:
        ValueError: If the file is damaged, no such file, or of another version.
    """
    if (found := CHECKSUM.search(saved)) and _checksum(saved) != found[1].decode():
        raise OutsideError(f"{path} is damaged: its checksum does not hold; {REMEDY}")
    with outside(f"{path} is no saved search", REMEDY):
        arrays = safetensors.numpy.load(saved)
        length = int.from_bytes(saved[:8], "little")
        metadata = json.loads(saved[8 : 8 + length])["__metadata__"]
        if metadata["format"] != FORMAT:
            raise OutsideError(
                f"{path} has format {metadata['format']:.20}, this version of hf_mabprune reads {FORMAT}: resume with "
                f"the version that saved it, or {REMEDY}"
            )
        if metadata["checksum"] != _checksum(saved):
            raise OutsideError(f"{path} is damaged: its checksum does not hold; {REMEDY}")

        def fill(value: Any) -> Any:
            if isinstance(value, dict):
                return arrays[value["array"]] if set(value) == {"array"} else {k: fill(v) for k, v in value.items()}
            return [fill(part) for part in value] if isinstance(value, list) else value

        return dict(fill(json.loads(metadata["tree"])))


def read_searches(saved: bytes, path: Path, fingerprint: str, stages: int) -> list[dict[str, Any]]:
    """Reads the states of the searches of a run: those that have ended, and the one that is under way.

    Args:
        saved: Content of the file.
        path: Place of the file.
        fingerprint: Of the run that goes on: its model, data and settings.
        stages: Searches that the run has at most.

    Raises:
        ValueError: If it cannot be read, is no saved run, or one of another model, other data or other settings.
    """
    state = unpack(saved, path)
    with outside(f"{path} is no saved search", REMEDY):
        read = read_state("a run", state, RUN, {})
        if len(read["earlier"]) >= max(stages, 1):
            raise ValueError(f"earlier must be searches of {stages} stages, got {len(read['earlier'])} of them")
    if read["fingerprint"] != fingerprint:
        raise OutsideError(
            f"{path} was saved with another model, other data or other settings; put those back, or {REMEDY}"
        )
    return [*read["earlier"], read["search"]]


def _checksum(saved: bytes) -> str:
    """Hashes a saved search, whatever it says its checksum is."""
    return hashlib.sha256(CHECKSUM.sub(rb'"checksum":"%s"' % BLANK.encode(), saved, count=1)).hexdigest()
