"""What of a pruned model recovery trains: all weights, or norms, biases and updates of low rank.

Whatever is trained, a plain model is left behind: updates of low rank are merged into the weights.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hf_mabprune.architectures import architecture_of
from hf_mabprune.architectures.projections import cuts
from hf_mabprune.architectures.sites import part_at
from hf_mabprune.config import RecoveryConfig

SCALE = 2.0  # of an update: alpha / r of its source


def takes_steps(parameter: nn.Parameter, settings: RecoveryConfig) -> bool:
    """Tells whether a method trains a parameter that the model has: norms and biases alone, or all."""
    return settings.method != "lora" or parameter.ndim == 1


def in_half(dense: PreTrainedModel) -> bool:
    """Tells whether forward passes of a training are in mixed precision: where the dense model is in bfloat16."""
    return dense.dtype == torch.bfloat16


@contextmanager
def trained(small: PreTrainedModel, settings: RecoveryConfig, half: bool) -> Iterator[None]:
    """Gives gradients to what a method trains, and to nothing else, while the block runs.

    What takes steps is widened to float32, for small steps would be rounded away; so is all the rest, but for what
    mixed precision would make bfloat16 again. Weights that take no steps are replaced, never changed in place.

    Args:
        small: The pruned model, changed in place.
        settings: Recovery settings: the method, and the rank of updates.
        half: Whether forward passes will be in mixed precision, from `in_half`.
    """
    light = settings.method == "lora"
    narrow = {id(weight) for weight in _products(small)} if light and half else set()
    for parameter in small.parameters():
        if id(parameter) not in narrow:
            parameter.data = parameter.data.float()
        parameter.requires_grad_(takes_steps(parameter, settings))
    tables = [module for module in small.modules() if isinstance(module, nn.Embedding)] if narrow else []
    hooks = [module.register_forward_hook(_widened) for module in tables]  # so is the sum that runs through the layers
    try:
        with _updates(small, settings.lora_rank) if light else nullcontext():
            yield
    finally:
        for hook in hooks:
            hook.remove()


def _products(small: PreTrainedModel) -> Iterator[torch.Tensor]:
    """Gives the weights that are only looked up, or multiplied in the precision that is chosen for products."""
    for module in small.modules():
        if isinstance(module, nn.Linear | Conv1D | nn.Embedding):
            yield module.weight


def _widened(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
    """A hook that gives what a table of half precision gives in float32."""
    return output.float()


@contextmanager
def _updates(small: PreTrainedModel, rank: int) -> Iterator[None]:
    """Gives a model an update of low rank at every projection that pruning can cut.

    A weight W [D, C] becomes W + 2 B A, with A [rank, C] and B [D, rank] trained and B zero at the start (Hu et al.,
    arXiv 2106.09685, section 4.1; their scale alpha / r is 2 here). The updates are merged into the weights when the
    block ends well, and taken out otherwise.
    """
    modules = [part_at(small.base_model, path) for path in sorted(_paths(small))]
    hooks = [_attach(module, rank) for module in modules]
    try:
        yield
        for module in modules:
            _merge(module)
    finally:
        for module, hook in zip(modules, hooks, strict=True):
            hook.remove()
            del module.lora_a, module.lora_b


def _paths(small: PreTrainedModel) -> set[str]:
    """Paths of the modules that pruning can cut and that take such updates: all but experts, routers and tables."""
    base, found = small.base_model, set()
    for site in architecture_of(small).sites(small):
        for cut in cuts(base, site, np.arange(site.units)):
            path = cut.path.rpartition(".")[0]
            if isinstance(part_at(base, path), nn.Linear | Conv1D):
                found.add(path)
    return found


def _attach(module: Any, rank: int) -> Any:
    """Gives a module its A and B, in float32, and adds 2 B A x to what it gives for x."""
    outputs, columns = reversed(module.weight.shape) if isinstance(module, Conv1D) else module.weight.shape
    options = {"dtype": torch.float32, "device": module.weight.device}
    bound = 1 / math.sqrt(columns)
    module.lora_a = nn.Parameter(torch.empty(rank, columns, **options).uniform_(-bound, bound))
    module.lora_b = nn.Parameter(torch.zeros(outputs, rank, **options))
    return module.register_forward_hook(_add)


def _add(module: Any, inputs: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
    """A hook that adds what the update gives."""
    narrow = nn.functional.linear(inputs[0].to(module.lora_a.dtype), module.lora_a)
    return output + SCALE * nn.functional.linear(narrow, module.lora_b).to(output.dtype)


@torch.no_grad()
def _merge(module: Any) -> None:
    """Adds a module's update to its weight, rounded once."""
    update = SCALE * module.lora_b @ module.lora_a
    wide = module.weight.float() + (update.T if isinstance(module, Conv1D) else update)
    module.weight.data = wide.to(module.weight.dtype)
