"""A LoRA of the dense model cut to the pruned one: W + s B A becomes W' + s B' A', with what W' keeps of W.

Symbols: r rank; D outputs and C inputs of a module of the dense model; D', C' those that stay.
"""

import copy
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hf_mabprune.arms import KeepIndices
from hf_mabprune.surgery.cut import Layout, cut

A, B = ".lora_A.weight", ".lora_B.weight"  # how names of weights end: [r, C] and [D, r]


@dataclass(frozen=True)
class Sides:
    """What stays of a module.

    Attributes:
        outputs: [D'], numbers of its outputs.
        inputs: [C'], numbers of its inputs.
    """

    outputs: torch.Tensor
    inputs: torch.Tensor


def kept_sides(
    dense: PreTrainedModel, keep: KeepIndices, layout: Layout, modules: Collection[str]
) -> dict[str, Sides]:
    """Finds the outputs and inputs of modules that a cut keeps, by cutting weights that hold their own numbers.

    So whatever surgery does, to fused and interleaved matrices too, is done to a LoRA alike.

    Args:
        dense: The dense model, float32, which holds numbers up to 2^24; it is not changed.
        keep: Unit indices that stay.
        layout: Layout of the pruned model.
        modules: Paths of modules, from the model.

    Raises:
        ValueError: If one is no Linear or Conv1D, or nothing is left on one of its sides.
    """
    found: list[dict[str, torch.Tensor]] = []
    for side in range(2):  # outputs, inputs
        numbered = copy.deepcopy(dense)
        for path in modules:
            weight, order = _weight(numbered, path)
            shape = [1, 1]
            shape[order[side]] = -1
            with torch.no_grad():
                weight.copy_(torch.arange(weight.shape[order[side]]).view(shape).expand_as(weight))
        small, own = cut(numbered, keep, layout, passing=True), {}
        for path in modules:
            weight, order = _weight(small, path)
            if not weight.numel():
                raise ValueError(f"{path} has no weights left, so a LoRA of it cannot be carried over")
            own[path] = weight.detach().select(order[1 - side], 0).long()
        found.append(own)
    outputs, inputs = found
    return {path: Sides(outputs[path], inputs[path]) for path in modules}


def sliced(weights: Mapping[str, torch.Tensor], sides: Mapping[str, Sides]) -> dict[str, torch.Tensor]:
    """Cuts the factors of a LoRA: columns of A, [r, C'], and rows of B, [D', r].

    Args:
        weights: Module + `.lora_A.weight` or `.lora_B.weight` -> factor.
        sides: Module -> what stays of it.
    """
    found = {}
    for path, kept in sides.items():
        found[path + A] = weights[path + A][:, kept.inputs].contiguous()
        found[path + B] = weights[path + B][kept.outputs].contiguous()
    return found


def _weight(model: nn.Module, path: str) -> tuple[torch.Tensor, tuple[int, int]]:
    """Gives the weight of a module, and its dimensions of outputs and inputs."""
    module = model.get_submodule(path)
    if isinstance(module, Conv1D):
        return module.weight, (1, 0)
    if isinstance(module, nn.Linear):
        return module.weight, (0, 1)
    raise ValueError(
        f"the LoRA of {path} is of a {type(module).__name__}; only those of linear layers are carried over"
    )
