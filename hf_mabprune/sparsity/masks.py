"""Masks that hold zeros through training, by torch.nn.utils.prune."""

import torch
from torch import nn
from torch.nn.utils import prune


class Held(prune.BasePruningMethod):
    """Keeps where a mask, [the shape of the tensor], is 1, and gives exact zeros elsewhere.

    The parameter becomes NAME_orig, which the optimizer trains, and NAME is made of it and of the mask before every
    forward pass: neither weight decay nor momentum reaches what the mask hides. The mask is of bools, and a zero is
    never -0.0, as it would be by multiplication.
    """

    PRUNING_TYPE = "unstructured"

    def compute_mask(self, t: torch.Tensor, default_mask: torch.Tensor) -> torch.Tensor:
        """Takes what is given as the scores for the mask itself."""
        return t.bool()

    def apply_mask(self, module: nn.Module) -> torch.Tensor:
        """Gives the tensor with its zeros, differentiable."""
        original, mask = (getattr(module, f"{self._tensor_name}_{part}") for part in ("orig", "mask"))
        return torch.where(mask, original, torch.zeros((), dtype=original.dtype, device=original.device))


def mask_of(module: nn.Module, name: str = "weight") -> torch.Tensor | None:
    """Gives the mask that is held on a tensor of a module; None where there is none."""
    return module._buffers.get(f"{name}_mask")


def hold(module: nn.Module, name: str, keep: torch.Tensor) -> None:
    """Holds a tensor of a module at zero where `keep` is False, and where a mask holds it already."""
    mask = mask_of(module, name)
    if mask is None:
        Held.apply(module, name, importance_scores=keep)
    else:
        mask.logical_and_(keep)
    refresh(module, name)


def refresh(module: nn.Module, name: str) -> None:
    """Makes NAME of what is trained and of the mask, as the next forward pass would, but without a graph, so that the
    model can be copied."""
    hook = next(h for h in module._forward_pre_hooks.values() if isinstance(h, Held) and h._tensor_name == name)
    setattr(module, name, hook.apply_mask(module).detach())


def let_go(module: nn.Module, name: str) -> None:
    """Writes the zeros into the parameter, which is called NAME again, and takes the mask away."""
    if mask_of(module, name) is not None:
        prune.remove(module, name)
