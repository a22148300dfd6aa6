"""Checks files of weights before and after transformers reads them: what they hold, and what a config asks for.

transformers allocates whatever a config asks for before it compares that with the files.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn.modules import module as nn_module
from transformers.utils import (
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
)

from hf_mabprune.checkpoints.stored_files import read_json, stored_file
from hf_mabprune.errors import OutsideError, outside

REMEDY = "fetch or save the model again"
SHARD = re.compile(r"\w[\w.-]*$")  # a name in the same folder
# A model may be larger than its files by what is tied in it and by a head that they lack, of which loading tells.
TIMES, SPARE_NUMBERS, SPARE_TENSORS = 2, 2**24, 1000
TIMES_TENSORS = 8  # files may hold in one tensor what a model has in several
SPARE_BUFFERS = 2**28
PACKED = {"I8": 4, "U8": 4, "I16": 8, "U16": 8, "I32": 16, "U32": 16}  # most numbers in one: none has below two bits


@dataclass
class StoredWeights:
    """What files of weights hold, by their headers.

    Attributes:
        files: Their paths; none where no weights were found.
        tensors: Name -> type and shape.
        packed: Whether integers are weights that are dequantised, several in one.
    """

    files: list[Path] = field(default_factory=list)
    tensors: dict[str, tuple[str, list[int]]] = field(default_factory=dict)
    packed: bool = False

    @property
    def numbers(self) -> int:
        """How many numbers they hold, or may hold where they are packed."""
        each = PACKED if self.packed else {}
        return sum(each.get(kind, 1) * prod(shape) for kind, shape in self.tensors.values())


def stored_weights(name: str, gguf_file: str | None = None, packed: bool = False, **origin: Any) -> StoredWeights:
    """Reads the headers of a model's weights, in the order in which transformers looks for them.

    Args:
        name: Folder or Hub name.
        gguf_file: GGUF file in it that holds them, if one does.
        packed: As that of `StoredWeights`.
        origin: Options of `from_pretrained` that say which files are meant: `revision`.

    Raises:
        OutsideError: If a file is broken, or an index names what is no file beside it.
    """
    if gguf_file:
        file = stored_file(name, gguf_file, **origin)
        return StoredWeights([file], _gguf(file), packed=True) if file else StoredWeights()
    for single, index in ((SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME), (WEIGHTS_NAME, WEIGHTS_INDEX_NAME)):
        if file := stored_file(name, single, **origin):
            return _headers([file], packed)
        if file := stored_file(name, index, **origin):
            return _headers([_shard(name, file, shard, origin) for shard in _shards(file)], packed)
    return StoredWeights()


def _shards(index: Path) -> list[str]:
    """Lists the files that an index names, checked."""
    files = read_json(index).get("weight_map")
    if not isinstance(files, dict) or not files:
        raise OutsideError(f"{index} cannot be read: it has no weight_map; {REMEDY}")
    for file in files.values():
        if not isinstance(file, str) or not SHARD.match(file):
            raise OutsideError(f"{index} names {file!r:.99}, which is no file beside it; {REMEDY}")
    return sorted(set(files.values()))


def _shard(name: str, index: Path, shard: str, origin: dict[str, Any]) -> Path:
    path = stored_file(name, shard, **origin)
    if path is None:
        raise OutsideError(f"{index} names {shard}, which is not there; {REMEDY}")
    return path


def _headers(files: Sequence[Path], packed: bool) -> StoredWeights:
    stored = StoredWeights(list(files), packed=packed)
    for file in files:
        with outside(f"{file} cannot be loaded", REMEDY):
            found = safetensors_headers(file) if file.suffix == ".safetensors" else _pickled(file)
            if sum(prod(shape) for _, shape in found.values()) > 2 * file.stat().st_size:  # two numbers a byte
                raise ValueError("its tensors are larger than the file")
        stored.tensors |= found
    return stored


def safetensors_headers(file: Path) -> dict[str, tuple[str, list[int]]]:
    """Reads names, types and shapes of the tensors of a file, without its numbers."""
    with safe_open(file, "pt") as opened:
        slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
        return {name: (str(each.get_dtype()), list(each.get_shape())) for name, each in slices.items()}


def _gguf(file: Path) -> dict[str, tuple[str, list[int]]]:
    """Reads names and shapes of a GGUF file; they count numbers as they are once dequantised."""
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise OutsideError(f"{file.name} cannot be read without gguf: pip install 'hf_mabprune[gguf]'") from error
    with outside(f"{file} cannot be loaded", REMEDY):
        return {
            each.name: (each.tensor_type.name, [int(size) for size in each.shape]) for each in GGUFReader(file).tensors
        }


def _pickled(file: Path) -> dict[str, tuple[str, list[int]]]:
    """Reads names and shapes of a file of torch, without running anything of it and without its numbers."""
    content = torch.load(file, map_location="meta", weights_only=True)
    if not isinstance(content, dict):
        raise ValueError(f"it must hold tensors by name, got {type(content).__name__}")
    tensors = {str(name): tensor for name, tensor in content.items() if isinstance(tensor, Tensor)}
    return {
        name: ("F" if tensor.is_floating_point() else str(tensor.dtype), list(tensor.shape))
        for name, tensor in tensors.items()
    }


@contextmanager
def no_larger_than(stored: StoredWeights, name: str) -> Iterator[None]:
    """Stops the construction of a model, which has no memory yet, once it is clearly larger than its files.

    Args:
        stored: What the files hold.
        name: Folder or Hub name, for the message.

    Raises:
        OutsideError: Saying what the config asks for, and what there is.
    """
    if not stored.files:
        yield
        return
    numbers, tensors = TIMES * stored.numbers + SPARE_NUMBERS, TIMES_TENSORS * len(stored.tensors) + SPARE_TENSORS
    parameters = _Count("parameters", numbers, tensors, stored, name)
    buffers = _Count("buffers", numbers + SPARE_BUFFERS, tensors + SPARE_TENSORS, stored, name)
    handles = (
        nn_module.register_module_parameter_registration_hook(parameters),
        nn_module.register_module_buffer_registration_hook(buffers),
    )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass
class _Count:
    """Counts what is registered with the modules of a model that is on the meta device."""

    kind: str
    numbers: int
    tensors: int
    stored: StoredWeights
    name: str

    def __call__(self, module: nn.Module, name: str, tensor: Tensor | None) -> None:
        if tensor is None or not tensor.is_meta:  # what is loaded comes after
            return
        self.numbers -= tensor.numel()
        self.tensors -= 1
        if self.numbers < 0 or self.tensors < 0:
            raise OutsideError(
                f"config.json of {self.name} asks for clearly more {self.kind} than its weights hold "
                f"({self.stored.numbers:,} numbers in {len(self.stored.tensors):,} tensors): save both together again"
            )


def check_numbers(model: nn.Module, stored: StoredWeights, name: str) -> None:
    """Refuses weights that are no floating-point numbers, or are not finite.

    Args:
        model: Model that was loaded.
        stored: What its files hold.
        name: Folder or Hub name, for the message.

    Raises:
        OutsideError: Naming the tensor.
    """
    parameters = {_tail(path) for path, _ in model.named_parameters()}
    for tensor, (kind, _) in stored.tensors.items():
        if not (stored.packed or kind.startswith(("F", "BF"))) and _tail(tensor) in parameters:
            raise OutsideError(f"the weights of {name} are not floating-point numbers: {tensor} is {kind}; {REMEDY}")
    check_finite(model, f"the weights of {name}", REMEDY)


def _tail(path: str) -> str:
    """Gives the end of a name, which no prefix of a base model changes: `dense.weight`."""
    return ".".join(path.split(".")[-2:])


def check_finite(model: nn.Module, what: str, remedy: str) -> None:
    """Refuses a model with a weight that is not finite.

    Raises:
        OutsideError: Naming the tensor.
    """
    for name, parameter in model.named_parameters():
        value = largest(parameter)
        if not value < float("inf"):
            raise OutsideError(f"{what} are not finite: {name} holds {value}; {remedy}")


def largest(tensor: Tensor) -> float:
    """Gives the largest absolute value of a tensor, nan where it holds one, without a copy of it."""
    if not tensor.numel():
        return 0.0
    low, high = torch.aminmax(tensor.detach())
    return float(torch.maximum(-low, high))
