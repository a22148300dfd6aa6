"""head_mask and neuron_mask for any supported family, applied by hooks that are always taken off again.

Transformers 5 removed `head_mask` from its models; this brings its semantics back. A head (or neuron) that is masked
contributes exactly what it would contribute if it were cut out: nothing.
Symbols: B batch, T tokens, L layers, H query heads, F FFN neurons, Dh head size.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_mabprune.architectures import Site, architecture_of
from hf_mabprune.arms import KeepIndices


@dataclass(frozen=True)
class StandIn:
    """What takes the place of the inputs h [C] of a masked arm: their best linear prediction from all other columns.

    So a mask does what removing the arm would do if the projection were refitted at once. With centred inputs h, their
    second moments H and S the columns of the arm, the ridge regression of h_S on all others, R, has the residual

        h_S - H_SR (H_RR)^-1 h_R = ([H^-1]_SS)^-1 [H^-1]_S,: h,

    since [H^-1]_SR = -[H^-1]_SS H_SR (H_RR)^-1 (inverse of a matrix in blocks): one inverse serves all arms.

    Attributes:
        mean: [C], E[h]; zeros where the projection may have no bias that takes it up.
        matrix: [C, C], the blocks [H^-1]_:,S ([H^-1]_SS)^-1 of all arms side by side; (h - mean) @ matrix is what the
            prediction of each arm misses, on the arm's own columns.
    """

    mean: torch.Tensor
    matrix: torch.Tensor

    def missed(self, hidden: torch.Tensor) -> torch.Tensor:
        """[..., C] for h [..., C]: what each arm alone contributes that the others cannot stand in for."""
        return (hidden - self.mean) @ self.matrix


@contextmanager
def masked(
    model: PreTrainedModel,
    head_mask: torch.Tensor | Mapping[int, torch.Tensor] | None = None,
    neuron_mask: Mapping[int, torch.Tensor] | None = None,
    stand_ins: Mapping[str, StandIn] | None = None,
) -> Iterator[PreTrainedModel]:
    """Masks heads and FFN neurons of a model while the context is open.

    Args:
        model: A supported model; its weights are not touched.
        head_mask: [L, H], or [H] for all layers alike, or [L, B, H] for one mask an example, or {layer: [H] or [B, H]}
            where layers differ in their number of heads. 1 keeps, 0 removes; anything between scales, and gradients
            flow to it.
        neuron_mask: {layer: [F]} or {layer: [B, F]}. For multiple choice B counts choices, not examples.
        stand_ins: What comes where an arm is masked, by the path of its site's projection; without it, zeros.

    Raises:
        ValueError: If the architecture is not supported or a mask does not fit it.
    """
    with ExitStack() as hooks:
        for site in architecture_of(model).sites(model):
            mask = neuron_mask.get(site.layer) if neuron_mask else None
            if site.kind == "head":
                mask = _head_mask_of_layer(head_mask, site)
            if mask is not None:
                projection = model.base_model.get_submodule(site.output)
                hook = _mask(_columns(mask, site), (stand_ins or {}).get(site.output))
                hooks.callback(projection.register_forward_pre_hook(hook).remove)
        yield model


def keep_masks(model: PreTrainedModel, keep: KeepIndices) -> dict[str, Any]:
    """Makes the arguments of `masked` that remove what `keep` does not keep, on the model's device in its dtype."""
    masks: dict[str, dict[int, torch.Tensor]] = {"neuron": {}, "head": {}}
    for site in architecture_of(model).sites(model):
        if site.layer in keep.of(site.kind):
            mask = torch.zeros(site.units, device=model.device, dtype=model.dtype)
            mask[torch.as_tensor(keep.of(site.kind)[site.layer], device=model.device)] = 1
            masks[site.kind][site.layer] = mask
    return {"neuron_mask": masks["neuron"], "head_mask": masks["head"]}


def _head_mask_of_layer(
    head_mask: torch.Tensor | Mapping[int, torch.Tensor] | None, site: Site
) -> torch.Tensor | None:
    """Picks [H] or [B, H] of a site's layer out of what `masked` was given."""
    if head_mask is None or isinstance(head_mask, Mapping):
        return head_mask.get(site.layer) if head_mask else None
    return head_mask if head_mask.dim() == 1 else head_mask[site.layer]


def _columns(mask: torch.Tensor, site: Site) -> torch.Tensor:
    """Turns [units] or [B, units] into a factor for the projection's input, [C] or [B, 1, C]."""
    if mask.shape[-1] != site.units:
        raise ValueError(f"layer {site.layer} has {site.units} {site.kind}s, the mask has {mask.shape[-1]}")
    columns = mask.repeat_interleave(site.unit_size, dim=-1)
    return columns.unsqueeze(-2) if mask.dim() > 1 else columns


def _mask(columns: torch.Tensor, stand_in: StandIn | None) -> Any:
    """Makes the hook that masks the input of a projection by a factor, [C] or [B, 1, C]."""

    def hook(module: nn.Module, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        hidden = arguments[0]
        # h less what is missed is the prediction; a factor between 0 and 1 goes a part of the way there.
        kept = hidden * columns if stand_in is None else hidden - stand_in.missed(hidden) * (1 - columns)
        return (kept, *arguments[1:])

    return hook
