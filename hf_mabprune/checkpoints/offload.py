"""Models larger than the memory that they run in: layers whose weights lie elsewhere, and come in when they run.

`device_map` says, as in transformers, which weights stay on the CPU or on disk. They are taken over from Accelerate:
each stays a tensor that can be read, cut, refitted and saved like any other, on the CPU or mapped from a file. When a
layer runs, its weights are copied to where the model runs, and stay there until another layer runs. So work that goes
layer by layer over all batches (`effects.finished_layers`) brings each layer in once. What is outside the layers,
embeddings and head above all, is where the model runs all the time.
"""

import copy
import os
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate.hooks import remove_hook_from_module
from torch import nn
from transformers import PreTrainedModel
from transformers.integrations.accelerate import load_offloaded_parameter

from hf_mabprune.architectures import architecture_of
from hf_mabprune.architectures.patching import answers

Keep = Callable[[torch.Tensor], torch.Tensor]

CPU, DISK = "cpu", "disk"
SAFETENSORS = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}  # names of types in files
ATTRIBUTE = "_mabprune_offload"


class _Home(NamedTuple):
    """A parameter's own tensor while a copy is in its place, and the parameter's version when that was made."""

    tensor: torch.Tensor
    version: int


class _Saved(NamedTuple):
    """A view of a parameter that a backward pass will read: of its own tensor, since the copy will be gone."""

    home: torch.Tensor
    size: torch.Size
    stride: tuple[int, ...]
    offset: int


@dataclass(eq=False)
class Offload:
    """Brings the layers of one model in, one at a time. A copy of the model has a copy of this.

    Attributes:
        layers: Layer -> where its weights lie, "cpu" or "disk".
        folder: Folder of temporary files.
        device: Where the model runs.
        brought: How many times a layer came in.
    """

    layers: dict[nn.Module, str] = field(repr=False)
    folder: str | None = None
    device: torch.device = field(default_factory=lambda: torch.device(CPU))
    brought: int = 0
    _homes: dict[nn.Parameter, _Home] = field(default_factory=dict, init=False, repr=False)
    _here: list[nn.Module] = field(default_factory=list, init=False, repr=False)  # the layer that is in, if any

    def away(self) -> list[nn.Module]:
        """Lists the layers that are brought in: weights on the CPU are where a model runs that runs there."""
        return [layer for layer, place in self.layers.items() if place == DISK or self.device.type != CPU]

    def bring(self, layer: nn.Module) -> None:
        """Copies the weights of a layer to where the model runs."""
        if layer in self._here or answers(layer) or layer not in self.away():
            return
        self.put_away()
        with torch.inference_mode(False):  # a later pass may take gradients
            for parameter in layer.parameters():
                self._homes[parameter] = _Home(parameter.data, parameter._version)
                parameter.data = parameter.data.to(self.device, copy=True)
        self._here = [layer]
        self.brought += 1

    def put_away(self) -> None:
        """Takes the layer that is in out again; what was written to its weights meanwhile is written back."""
        with torch.inference_mode(False):
            for parameter, home in self._homes.items():
                if parameter._version != home.version:
                    home.tensor.copy_(parameter.data)
                parameter.data = home.tensor
        self._homes, self._here = {}, []

    def kept(self, tensor: torch.Tensor) -> torch.Tensor:
        """Puts a matrix of a smaller copy of the model into a file, where matrices of the model are in files."""
        on_disk = DISK in self.layers.values() and tensor.device.type == CPU and tensor.ndim > 1
        return mapped(tensor, self.folder) if on_disk else tensor

    @contextmanager
    def backward(self) -> Iterator[None]:
        """Lets backward passes read weights from where they lie, and not hold on to what forward passes brought in."""
        with torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack):
            yield

    def _pack(self, tensor: torch.Tensor) -> torch.Tensor | _Saved:
        storage = tensor.untyped_storage().data_ptr()
        for parameter, home in self._homes.items():
            if parameter.data.untyped_storage().data_ptr() == storage:
                offset = int(home.tensor.storage_offset() + tensor.storage_offset())
                return _Saved(home.tensor, tensor.size(), tensor.stride(), offset)
        return tensor

    def _unpack(self, packed: torch.Tensor | _Saved) -> torch.Tensor:
        if isinstance(packed, torch.Tensor):
            return packed
        view = packed.home.as_strided(packed.size, packed.stride, packed.offset)
        return view.to(self.device)


class _Bring:
    """What the forward pass of a layer begins with. It does not hold on to the rest of the model, which so goes at
    once when nobody else does."""

    def __init__(self, offload: Offload) -> None:
        self.offload = weakref.ref(offload)

    def __call__(self, layer: nn.Module, arguments: Any) -> None:
        if offload := self.offload():
            offload.bring(layer)

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Bring":
        offload = copy.deepcopy(self.offload(), memo)
        assert offload is not None, "a model holds its own, and its copy this one"
        return _Bring(offload)


def offload_of(model: nn.Module) -> Offload | None:
    """Gives what brings the layers of a model in; None where all weights are at hand."""
    found: Offload | None = vars(model).get(ATTRIBUTE)
    return found if found and found.away() else None


def all_away(model: nn.Module) -> Keep:
    """Puts all weights where they lie, for work on the weights themselves, and gives what keeps new ones there."""
    offload = offload_of(model)
    if offload is None:
        return lambda tensor: tensor
    offload.put_away()
    return offload.kept


def on_device(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    """Moves a model to where it runs, in place, but for layers whose weights lie elsewhere; gives the model."""
    offload: Offload | None = vars(model).get(ATTRIBUTE)
    if offload is None:
        nn.Module.to(model, device)
        return model
    offload.device = device
    inside = {module for layer in offload.away() for module in layer.modules()}
    for module in model.modules():
        if module not in inside:
            module._apply(lambda tensor: tensor.to(device), recurse=False)
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else buffer.to(device)
    return model


def bytes_at_hand(model: PreTrainedModel) -> int:
    """Counts the bytes of weights that are in memory at a time: all, or those outside the layers that are brought in
    and the largest of these."""
    offload, total = offload_of(model), int(model.get_memory_footprint())
    if offload is None:
        return total
    layers = [sum(weight.nbytes for weight in layer.parameters()) for layer in offload.away()]
    return total - sum(layers) + max(layers)


def places_of(model: PreTrainedModel) -> dict[str, Any]:
    """Gives the options of `from_pretrained` that have a copy of the model lie where this one lies."""
    offload = offload_of(model)
    if offload is None:
        return {}
    layers = {
        f"{_prefix(model)}{layer.path}": offload.layers.get(model.base_model.get_submodule(layer.path), CPU)
        for layer in architecture_of(model).layers(model)
    }
    modules = {name.rpartition(".")[0] for name in model.state_dict()}
    rest = [path for path in modules if not f"{path}.".startswith(tuple(f"{layer}." for layer in layers))]
    return {"device_map": {**dict.fromkeys(rest, CPU), **layers}, "offload_folder": offload.folder}


def take_over(model: PreTrainedModel, folder: str | None, stored: Mapping[str, tuple[str, Any]]) -> None:
    """Takes the weights that transformers has spread over devices from Accelerate's hooks, in place.

    Args:
        model: Model, as `from_pretrained` gives it with a `device_map`.
        folder: Folder of temporary files, for weights on disk that are not in the model's files as they are needed.
        stored: What the model's files hold: name -> type and shape.

    Raises:
        ValueError: If they are spread over several GPUs.
    """
    devices = sorted({str(device) for device in vars(model).pop("hf_device_map", {}).values()} - {CPU, DISK})
    if len(devices) > 1:
        raise ValueError(
            f"model.device_map spreads the weights over devices {', '.join(devices)}, and a run computes on one: set "
            "model.max_memory of the others to 0, so that what does not fit lies on cpu or disk"
        )
    on_disk: dict[str, torch.Tensor] = {}
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            tensor = load_offloaded_parameter(model, name)
            as_stored = stored.get(name, ("", None))[0] == SAFETENSORS.get(tensor.dtype)
            on_disk[name] = tensor if as_stored else mapped(tensor, folder)  # safetensors maps what it reads
    remove_hook_from_module(model, recurse=True)
    for module in model.modules():
        vars(module).pop("forward", None)  # bound to the module, which would hold itself
    for name, tensor in on_disk.items():
        path, _, last = name.rpartition(".")
        parameter = nn.Parameter(tensor, model.get_parameter(name).requires_grad)
        setattr(model.get_submodule(path), last, parameter)
    model.tie_weights()
    base = _prefix(model)
    layers: dict[nn.Module, str] = {}
    for each in architecture_of(model).layers(model):
        layer = model.base_model.get_submodule(each.path)
        if any(name.startswith(f"{base}{each.path}.") for name in on_disk):
            layers[layer] = DISK
        elif all(weight.device.type == CPU for weight in layer.parameters()):
            layers[layer] = CPU
    offload = Offload(layers, folder)
    setattr(model, ATTRIBUTE, offload)
    for layer in layers:
        layer.register_forward_pre_hook(_Bring(offload))


def mapped(tensor: torch.Tensor, folder: str | None = None) -> torch.Tensor:
    """Copies a tensor into a temporary file that is mapped into memory and goes with the copy, which is on the CPU.

    Args:
        folder: Where the file is made; None takes the folder of the system.

    Raises:
        OSError: If the disk is full.
    """
    if not tensor.numel():  # no file of no bytes can be mapped
        return tensor.detach().cpu()
    number, name = tempfile.mkstemp(prefix="mabprune-", dir=folder)
    try:
        with os.fdopen(number, "wb") as file:
            tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tofile(file)
            file.flush()
            os.fsync(file.fileno())
        copy = torch.from_file(name, shared=True, size=tensor.nbytes, dtype=torch.uint8)
    finally:
        Path(name).unlink()  # the mapping outlives the name
    return copy.view(tensor.dtype).view(tensor.shape)


def _prefix(model: PreTrainedModel) -> str:
    """What names of the base model begin with in the whole one."""
    return "" if model.base_model is model else f"{model.base_model_prefix}."
