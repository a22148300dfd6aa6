"""Which weights of a model sparsity counts, and how they are seen: by unit, input and place in the kernel.

Symbols: O units (outputs) of a module, I inputs of each unit, K entries of a kernel (1 where there is none).
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import nn
from torch.nn.utils import parametrize, prune
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hf_mabprune.sparsity.masks import Held, mask_of, masked

COUNTED = (nn.Linear, Conv1D, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Weights:
    """The weights of one module.

    Attributes:
        name: Path of the module in the model.
        module: A linear layer or a convolution.
    """

    name: str
    module: nn.Module

    @property
    def parameter(self) -> nn.Parameter:
        """What an optimizer trains: the weights, or behind a held mask what the mask is laid on."""
        parameter: nn.Parameter = self.module.get_parameter(
            "weight" if mask_of(self.module) is None else "weight_orig"
        )
        return parameter

    def values(self) -> torch.Tensor:
        """Gives the weights that the module computes with, masks applied, as [O, I, K], detached."""
        weight, mask = self.parameter.detach(), mask_of(self.module)
        return self.by_unit(weight if mask is None else masked(weight, mask))

    def by_unit(self, weight: torch.Tensor) -> torch.Tensor:
        """Views a tensor of the shape of the weights as [O, I, K]; I is that of a group of a grouped convolution."""
        units_first = weight.T if isinstance(self.module, Conv1D) else weight
        return units_first.unsqueeze(2).flatten(2)

    def as_stored(self, by_unit: torch.Tensor) -> torch.Tensor:
        """Gives a tensor [O, I, K] the shape of the weights, contiguous."""
        if isinstance(self.module, Conv1D):
            return by_unit.squeeze(2).T.contiguous()
        return by_unit.reshape(self.parameter.shape).contiguous()


def find_weights(
    model: nn.Module, exclude: Sequence[str] = (), head: bool = False
) -> tuple[list[Weights], dict[str, str]]:
    """Finds the linear layers and convolutions whose weights count.

    Counted are nn.Linear, nn.Conv1d to nn.Conv3d and the Conv1D of transformers. A module that runs several times
    counts once. Embeddings, norms, transposed convolutions and experts held in bare parameters do not count; what else
    is left out is named.

    Args:
        model: Any network.
        exclude: Names of modules to leave out with all that is in them; * stands for anything.
        head: Whether the last layer counts too: the output embeddings, else the last of these modules outside of the
            base model; of a network that is none of transformers, the last of them all.

    Returns:
        The weights in the order of the model, and why each of the others was left out, by name.

    Raises:
        ValueError: If nothing counts, a name is of no module, or weights cannot take zeros: packed, elsewhere or
            under masks of somebody else.
    """
    modules = dict(model.named_modules())
    for pattern in exclude:
        if not any(_matches(name, pattern) for name in modules):
            raise ValueError(f"exclude names modules of the model, got {pattern!r}, which none is called")
    owners = Counter(id(p) for module in modules.values() for p in module._parameters.values() if p is not None)
    found: list[Weights] = []
    left_out: dict[str, str] = {}
    last = None if head else last_layer(model)
    inside_attention = {id(m.out_proj) for m in modules.values() if isinstance(m, nn.MultiheadAttention)}
    for name, module in modules.items():
        if not isinstance(module, COUNTED):
            continue
        if any(_matches(name, pattern) for pattern in exclude):
            left_out[name] = "excluded"
        elif name == last:
            left_out[name] = "the last layer"
        elif parametrize.is_parametrized(module):
            left_out[name] = "its weights are computed from others (parametrized)"
        elif id(module) in inside_attention:
            left_out[name] = "nn.MultiheadAttention reads its weights without running it"
        else:
            _check(name, module)
            weights = Weights(name, module)
            if owners[id(weights.parameter)] > 1:
                left_out[name] = "its weights are tied to those of another module"
            else:
                found.append(weights)
    if not found:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in left_out.items()) or "there are none"
        raise ValueError(f"no linear layer or convolution is left to prune ({reasons})")
    return found, left_out


def last_layer(model: nn.Module) -> str | None:
    """Gives the name of the layer that makes a model's outputs; None for a base model of transformers."""
    names = {id(module): name for name, module in model.named_modules()}
    counted = [name for name, module in model.named_modules() if isinstance(module, COUNTED)]
    if isinstance(model, PreTrainedModel):
        output = model.get_output_embeddings()
        if isinstance(output, nn.Module):
            return names.get(id(output))
        base = names[id(model.base_model)]
        counted = [name for name in counted if base and not _matches(name, base)]
    return counted[-1] if counted else None


def _matches(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")


def _check(name: str, module: nn.Module) -> None:
    """Refuses weights that cannot take zeros."""
    if any(
        isinstance(h, prune.BasePruningMethod) and not isinstance(h, Held) for h in module._forward_pre_hooks.values()
    ):
        raise ValueError(f"{name} has a mask of torch.nn.utils.prune already: make it permanent first (prune.remove)")
    weight = Weights(name, module).parameter
    if weight.is_meta:
        raise ValueError(f"{name} is on the meta device, without numbers: load the model whole, without offloading")
    if not weight.is_floating_point():
        raise ValueError(f"{name} holds {weight.dtype}: packed weights cannot be pruned. Prune first, then quantise")
    if not bool(weight.isfinite().all()):
        raise ValueError(f"{name} holds weights that are not finite, which cannot be ranked")
