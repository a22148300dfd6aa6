"""A search on disk: one safetensors file, and what tells one run from another."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import torch
from safetensors import SafetensorError
from torch import nn

FORMAT = "3"
SAMPLE = 256  # numbers of each tensor that the fingerprint of a model reads


def fingerprint(model: nn.Module, batches: Sequence[dict[str, torch.Tensor]]) -> str:
    """Tells models and calibration data apart: a hash of all tokens and of a sample of every tensor."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        flat = tensor.detach().flatten()
        step = max(1, len(flat) // SAMPLE)
        digest.update(f"{name} {list(tensor.shape)}".encode())
        digest.update(flat[::step].float().cpu().numpy().tobytes())
    for batch in batches:
        for name, tensor in sorted(batch.items()):
            digest.update(name.encode())
            digest.update(tensor.cpu().numpy().tobytes())
    return digest.hexdigest()


def pack(state: dict[str, Any]) -> bytes:
    """Nested dicts of arrays and JSON values as one safetensors file."""
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
    return safetensors.numpy.save(arrays, metadata={"format": FORMAT, "tree": tree})


def unpack(saved: bytes, path: Path) -> dict[str, Any]:
    """What `pack` packed.

    Raises:
        ValueError: If the file is broken, or of another version.
    """
    try:
        arrays = safetensors.numpy.load(saved)
        length = int.from_bytes(saved[:8], "little")
        metadata = json.loads(saved[8 : 8 + length])["__metadata__"]
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is no saved search ({error}); start anew with output.overwrite: true") from None
    if metadata.get("format") != FORMAT:
        raise ValueError(
            f"{path} has format {metadata.get('format')}, this version of hf_mabprune reads {FORMAT}: resume with the "
            "version that saved it, or start anew with output.overwrite: true"
        )

    def fill(value: Any) -> Any:
        if isinstance(value, dict):
            return arrays[value["array"]] if set(value) == {"array"} else {k: fill(v) for k, v in value.items()}
        return [fill(part) for part in value] if isinstance(value, list) else value

    return dict(fill(json.loads(metadata["tree"])))
