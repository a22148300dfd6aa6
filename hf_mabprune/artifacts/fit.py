"""Whether the files of a checkpoint belong together: weights that are whole and fit their config, code that is ours.

The model is built on the meta device, so nothing is allocated, and no code of the checkpoint is run.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from hf_mabprune.checkpoints import modeling_pruned
from hf_mabprune.checkpoints.load import load_config, model_class_of
from hf_mabprune.checkpoints.modeling_file import MODELING_FILE, is_own_modeling_file
from hf_mabprune.checkpoints.stored_files import read_json
from hf_mabprune.checkpoints.weight_files import no_larger_than, safetensors_headers, stored_weights
from hf_mabprune.errors import OutsideError, outside
from hf_mabprune.progress import over

CONFIG = "config.json"
SHOWN = 3  # tensors that a message names


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a safetensors file, by its header.

    Attributes:
        file: File that it lies in.
        dtype: As safetensors names it: F32, BF16, ...
        shape: Its dimensions.
    """

    file: Path
    dtype: str
    shape: tuple[int, ...]


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Reads the headers of the weights that `from_pretrained` would load: name -> tensor.

    Raises:
        ValueError: If there are none, or a file is not whole: its size is another than its header says.
    """
    single, index = folder / SAFE_WEIGHTS_NAME, folder / SAFE_WEIGHTS_INDEX_NAME
    if single.is_file():
        return _headers(single)
    if not index.is_file():
        raise ValueError(f"{folder} has no {SAFE_WEIGHTS_NAME}: save the model again, as safetensors")
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(re.fullmatch(r"\w[\w.-]*", str(file)) for file in places.values()):
        raise ValueError(f"{index} must map tensors to files beside it: save the checkpoint again")
    found: dict[str, StoredTensor] = {}
    for file in sorted(set(places.values())):
        found |= _headers(folder / file)
    if wrong := sorted({*places} ^ {*found}):
        raise ValueError(f"{index} and the files that it names differ in {_some(wrong)}: save the checkpoint again")
    return found


def _headers(file: Path) -> dict[str, StoredTensor]:
    """Reads the header of one file, which says how long the file is."""
    with outside(f"{file} is not whole", "fetch or save it again"):
        headers = safetensors_headers(file)
    return {name: StoredTensor(file, dtype, tuple(shape)) for name, (dtype, shape) in headers.items()}


def read_tensor(name: str, stored: StoredTensor) -> torch.Tensor:
    """Reads one tensor of a file."""
    with safe_open(stored.file, "pt") as opened:
        tensor: torch.Tensor = opened.get_tensor(name)
    return tensor


def read_tensors(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Goes through the tensors of a checkpoint, one at a time."""
    for name, stored in over(stored_tensors(folder).items(), "weights", "tensors"):
        yield name, read_tensor(name, stored)


def refuse_not_finite(folder: Path) -> None:
    """Raises ValueError where a stored number is not finite."""
    for name, tensor in read_tensors(folder):
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ValueError(f"{name} of {folder} has numbers that are not finite")


def fitted_model(folder: Path, spare: bool = False) -> PreTrainedModel:
    """Builds the model that a checkpoint's config says, without memory, and compares its weights with the files.

    Args:
        folder: Checkpoint of a family that transformers or a plugin knows, or of layout per_layer.
        spare: Whether tensors may be left over that the model does not have.

    Returns:
        The model, on the meta device.

    Raises:
        ValueError: If the config cannot be read or names no model class, or tensors are missing, not the model's, or
            of other shapes.
    """
    config = load_config(str(folder))
    loader: Any = model_class_of(config, str(folder))
    options: dict[str, Any] = {
        "device_map": {"": "meta"},
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,
    }
    with outside(f"{folder} cannot be loaded", "save config and weights together again"):
        with torch.device("meta"), no_larger_than(stored_weights(str(folder)), str(folder)):
            loader(config)  # a config may ask for anything, and is stopped where it asks for too much
        model, loading = loader.from_pretrained(folder, **options)
    if misfit := _misfit(loading, spare):
        raise OutsideError(f"the weights do not fit {CONFIG}: {misfit}; save both together again")
    fitted: PreTrainedModel = model
    return fitted


def _misfit(loading: Mapping[str, Any], spare: bool) -> str:
    """Says what transformers found amiss; nothing where all is there, and nothing else."""
    if mismatched := sorted(loading["mismatched_keys"]):
        name, stored, expected = mismatched[0]
        return f"{name} must have shape {list(expected)}, got {list(stored)}"
    if missing := sorted(loading["missing_keys"]):
        return f"{_some(missing)} is not there"
    if not spare and (strange := sorted(loading["unexpected_keys"])):
        return f"{_some(strange)} is of no use to the model"
    return ""


def _some(names: list[str]) -> str:
    """Names some tensors, and counts the others."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{', '.join(names[:SHOWN])}{more}"


def is_per_layer(settings: Mapping[str, Any]) -> bool:
    """Whether a config.json is that of a checkpoint with per-layer sizes."""
    return str(settings.get("model_type")).startswith(modeling_pruned.TYPE_PREFIX)


def check_code(folder: Path) -> str:
    """Makes sure that the code of a checkpoint is the file of this package, or that there is none.

    Returns:
        What there is.

    Raises:
        ValueError: If there is other code, or config.json leads to some.
    """
    settings = read_json(folder / CONFIG)
    file, auto_map = folder / MODELING_FILE, settings.get("auto_map") or {}
    others = sorted(path.name for path in folder.rglob("*.py") if path != file)
    if others:
        raise ValueError(f"{others[0]} is code that no run writes: read it, and remove it")
    for side in sorted(folder.glob("*_config.json")):
        if read_json(side).get("auto_map"):
            raise ValueError(f"{side.name} names code in auto_map, which no run writes: read it, and remove it")
    if not is_per_layer(settings):
        if file.exists() or auto_map:
            found = MODELING_FILE if file.exists() else f"auto_map in {CONFIG}"
            raise ValueError(f"a checkpoint of layout uniform needs no code, and there is {found}: remove it")
        return "none, as layout uniform needs none"
    if not file.is_file():
        raise ValueError(f"{MODELING_FILE} is missing")
    if not is_own_modeling_file(file):
        raise ValueError(f"{MODELING_FILE} is not the one of this version of hf_mabprune: read it before you trust it")
    own = f"{MODELING_FILE.removesuffix('py')}{modeling_pruned.CLASS_PREFIX}"
    for auto, place in auto_map.items() if isinstance(auto_map, dict) else [("auto_map", auto_map)]:
        if not (isinstance(place, str) and place.startswith(own)):
            raise ValueError(f"auto_map in {CONFIG} leads {auto} to {place!r:.80}, not to {MODELING_FILE}")
    return f"{MODELING_FILE} is the one of this version of hf_mabprune"
