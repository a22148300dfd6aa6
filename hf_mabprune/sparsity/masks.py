"""Masks that hold zeros through training, by torch.nn.utils.prune."""

from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.utils import prune


class Held(prune.BasePruningMethod):
    """Keeps where a mask, of the shape of the tensor, is True, and gives exact zeros elsewhere.

    The parameter becomes NAME_orig, which the optimizer trains, and NAME is made of it and of the mask before every
    forward pass: neither weight decay nor momentum reaches what the mask hides. The mask is of bools, and a zero is
    never -0.0, as it would be by multiplication. A state dict holds NAME with its zeros and nothing else, so that what
    is saved while masks are held is an ordinary checkpoint; one that is loaded comes under the masks that are there.
    """

    PRUNING_TYPE = "unstructured"

    def compute_mask(self, t: torch.Tensor, default_mask: torch.Tensor) -> torch.Tensor:
        """Takes what is given as the scores for the mask itself."""
        return t.bool()

    def apply_mask(self, module: nn.Module) -> torch.Tensor:
        """Gives the tensor with its zeros, differentiable."""
        return masked(getattr(module, f"{self._tensor_name}_orig"), getattr(module, f"{self._tensor_name}_mask"))

    def follow(self, module: nn.Module) -> None:
        """Writes and reads the state dicts of a module from here on."""
        self._handles = (
            module.register_state_dict_post_hook(partial(_written, self._tensor_name)),
            module.register_load_state_dict_pre_hook(partial(_read, self._tensor_name)),
        )

    def remove(self, module: nn.Module) -> None:
        """Takes the mask away: its zeros stay."""
        super().remove(module)
        for handle in self._handles:
            handle.remove()


def _written(tensor: str, module: nn.Module, state: dict[str, Any], prefix: str, metadata: dict[str, Any]) -> None:
    """Puts a tensor with its zeros into a state dict, in the place of what it is made of."""
    name = f"{prefix}{tensor}"
    state[name] = masked(state.pop(f"{name}_orig"), state.pop(f"{name}_mask"))


def _read(tensor: str, module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Gives a state dict that is loaded the names that the module has now, and its mask."""
    name = f"{prefix}{tensor}"
    if name in state:
        state[f"{name}_orig"] = state.pop(name)
        state[f"{name}_mask"] = mask_of(module, tensor)


def masked(tensor: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """Gives a tensor with zeros where `keep` is False."""
    return torch.where(keep, tensor, torch.zeros((), dtype=tensor.dtype, device=tensor.device))


def mask_of(module: nn.Module, name: str = "weight") -> torch.Tensor | None:
    """Gives the mask that is held on a tensor of a module; None where there is none."""
    return module._buffers.get(f"{name}_mask")


def hold(module: nn.Module, name: str, keep: torch.Tensor) -> None:
    """Holds a tensor of a module at zero where `keep` is False, and where a mask holds it already."""
    mask = mask_of(module, name)
    if mask is None:
        Held.apply(module, name, importance_scores=keep).follow(module)
    else:
        mask.logical_and_(keep)
    hook = next(h for h in module._forward_pre_hooks.values() if isinstance(h, Held) and h._tensor_name == name)
    setattr(module, name, hook.apply_mask(module).detach())  # without a graph, so that the model can be copied


def let_go(module: nn.Module, name: str) -> None:
    """Writes the zeros into the parameter, which is called NAME again, and takes the mask away."""
    if mask_of(module, name) is not None:
        prune.remove(module, name)
        for other in [other for other in module._parameters if other not in ("weight", name)]:
            module._parameters[other] = module._parameters.pop(other)  # weights come first, as in any other module
