"""Bytes of the weights that a checkpoint has on disk, before it is written."""

import copy
import json
from collections.abc import Iterable, Mapping, Sequence

import torch
from transformers import PreTrainedModel

from hf_mabprune.architectures import architecture_of, projection_of
from hf_mabprune.architectures.base import PRUNED_PREFIX
from hf_mabprune.architectures.stock import bias_fields, built_shapes
from hf_mabprune.arms import LAYER, ArmTable
from hf_mabprune.selection.target import Quantity

DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}  # as safetensors writes them
LENGTH = 8  # bytes that say how long the header of such a file is
SPARE = 32  # bytes a tensor: in files of some stock models their names are longer, or they come in another order


def stored_of(model: PreTrainedModel, arms: ArmTable, dtype: torch.dtype, refitted: bool) -> Quantity:
    """Counts the bytes of the files of weights, and those that go with each arm.

    Args:
        model: Dense model.
        arms: All arms of the model.
        dtype: Precision of saved weights.
        refitted: Whether what stays is refitted, which may add biases.
    """
    added = sum(new_biases(model, arms).values()) * dtype.itemsize if refitted else 0
    names = [f"{name}.bias" for name in new_biases(model, arms)] if refitted else []
    added += _header(dict.fromkeys(names, (torch.Size([2**20]), dtype)))
    cost = arms.parameters.astype(float) * dtype.itemsize
    return Quantity(stored_bytes(model, dtype), cost, dtype.itemsize, unit="B", added=added)


def stored_bytes(model: PreTrainedModel, dtype: torch.dtype) -> float:
    """Counts the bytes that the files of weights of a model will have.

    Args:
        model: Any model.
        dtype: Precision of saved weights.
    """
    parameters = dict(model.named_parameters())  # tied ones once, as they are saved
    tensors = {name: (parameter.shape, dtype) for name, parameter in parameters.items()}
    others = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    tensors |= {name: (held.shape, held.dtype) for name, held in model.state_dict().items() if name not in others}
    for name in model._keys_to_ignore_on_save or ():
        tensors.pop(name, None)
    # Stock files of some types have matrices for each expert, of what is two parameters for all in memory.
    apart = {
        f"{name}.{part}": (shape, kind)
        for name, (shape, kind) in tensors.items()
        if ".experts." in name
        for part in range(2 * shape[0])
    }
    return float(sum(shape.numel() * kind.itemsize for shape, kind in tensors.values()) + _header(tensors | apart))


def new_biases(model: PreTrainedModel, arms: ArmTable) -> dict[str, int]:
    """Counts what refits may add: projections that may be given biases -> numbers in them.

    A stock config says biases of some projections along with those of others, which are counted too.

    Args:
        model: Dense model.
        arms: All arms of the model.
    """
    named = {name for name, _ in arms.groups()}
    sites = [site for site in architecture_of(model).sites(model) if site.name in named or LAYER in arms.kinds()]
    own = {site.name: len(projection.weight) for site in sites
           if (projection := projection_of(model, site)).module is not None and projection.bias is None}  # fmt: skip
    fields = {} if model.config.model_type.startswith(PRUNED_PREFIX) else bias_fields(model)
    if not (said := {fields[name] for name in own if name in fields}):
        return own
    config = copy.deepcopy(model.config)
    for field in said:
        setattr(config, field, True)
    there = dict(model.base_model.named_parameters())
    shapes = built_shapes(type(model), config)
    stock = {path: shape for path, shape in shapes.items() if path.endswith(".bias") and path not in there}
    return own | {path.removesuffix(".bias"): shape[0] for path, shape in stock.items()}


def _header(tensors: Mapping[str, tuple[Sequence[int], torch.dtype]]) -> int:
    """Counts the bytes of what a safetensors file says of its tensors."""
    if not tensors:
        return 0
    ends = list(_ends(tensors.values()))
    said = {
        name: {"dtype": DTYPES.get(dtype, "F64"), "shape": list(shape), "data_offsets": [start, end]}
        for (name, (shape, dtype)), start, end in zip(tensors.items(), [0, *ends], ends, strict=False)
    }
    text = json.dumps({"__metadata__": {"format": "pt"}, **said}, separators=(",", ":"))
    return LENGTH + len(text) + SPARE * len(tensors)


def _ends(tensors: Iterable[tuple[Sequence[int], torch.dtype]]) -> Iterable[int]:
    """Gives where each tensor ends in the file."""
    end = 0
    for shape, dtype in tensors:
        end += torch.Size(shape).numel() * dtype.itemsize
        yield end
