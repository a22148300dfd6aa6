"""Masks for any supported family, applied by hooks that are always taken off again.

Transformers 5 removed `head_mask` from its models; this brings its semantics back, for every kind of site. A head,
neuron or expert that is masked contributes exactly what it would contribute if it were cut out: nothing. A layer that
is masked hands on what it was given.
Symbols: B batch, T tokens, L layers, H query heads, F FFN neurons, E experts, Dh head size.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from hf_mabprune.architectures import Site, architecture_of
from hf_mabprune.architectures.patching import replaced
from hf_mabprune.arms import LAYER, KeepIndices
from hf_mabprune.effects.taps import tapped

Masks = Mapping[str, torch.Tensor]  # name of a site -> [units], or [B, units]: 1 keeps, 0 removes


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
        return (hidden - self.mean) @ self.matrix.to(hidden.device)


@contextmanager
def masked(
    model: PreTrainedModel,
    head_mask: torch.Tensor | Mapping[int, torch.Tensor] | None = None,
    neuron_mask: Mapping[int, torch.Tensor] | None = None,
    *,
    masks: Masks | None = None,
    stand_ins: Mapping[str, StandIn] | None = None,
) -> Iterator[PreTrainedModel]:
    """Masks heads, FFN neurons, experts and layers of a model while the context is open.

    Args:
        model: A supported model; its weights are not touched.
        head_mask: [L, H], or [H] for all layers alike, or [L, B, H] for one mask an example, or {layer: [H] or [B, H]}
            where layers differ in their number of heads. 1 keeps, 0 removes; anything between scales, and gradients
            flow to it. For models of one stack with one attention a layer; others are masked by site.
        neuron_mask: {layer: [F]} or {layer: [B, F]}. For multiple choice B counts choices, not examples.
        masks: The same by name of the site: [units] or [B, units]. An expert that is masked is one that the router
            does not know; a factor between 0 and 1 multiplies its odds. A layer has one unit.
        stand_ins: What comes where an arm is masked, by name of the site; without it, zeros.

    Raises:
        ValueError: If the architecture is not supported or a mask does not fit it.
    """
    architecture = architecture_of(model)
    if not masks and head_mask is None and neuron_mask is None:
        yield model
        return
    sites = architecture.sites(model)
    by_name = {**(masks or {}), **_by_layer(sites, "head", head_mask), **_by_layer(sites, "neuron", neuron_mask)}
    taps, others = {}, {}
    for site in (*sites, *architecture.whole_layers(model)):
        mask = by_name.get(site.name)
        if mask is None:
            continue
        if mask.shape[-1] != site.units:
            raise ValueError(f"{site.name} has {site.units} {site.kind}s, the mask has {mask.shape[-1]}")
        if site.kind in ("expert", LAYER):
            module = model.base_model.get_submodule(site.name)
            others[module] = partial(_route if site.kind == "expert" else _pass_by, module.forward, mask)
        else:
            taps[site.name] = partial(_mask, _columns(mask, site), (stand_ins or {}).get(site.name))
    with tapped(model, taps), replaced(others) if others else ExitStack():
        yield model


def keep_masks(model: PreTrainedModel, keep: KeepIndices) -> dict[str, torch.Tensor]:
    """Makes the masks that remove what `keep` does not keep, on the model's device in its dtype."""
    masks, architecture = {}, architecture_of(model)
    for site in (*architecture.sites(model), *architecture.whole_layers(model)):
        if site.name in keep:
            mask = torch.zeros(site.units, device=model.device, dtype=model.dtype)
            mask[torch.as_tensor(keep[site.name], device=model.device)] = 1
            masks[site.name] = mask
    return masks


def _by_layer(
    sites: list[Site], kind: str, given: torch.Tensor | Mapping[int, torch.Tensor] | None
) -> dict[str, torch.Tensor]:
    """Gives the masks by site of what was given by layer.

    Raises:
        ValueError: If a layer has several sites of the kind, or a mask is of a layer that has none.
    """
    if given is None:
        return {}
    of_layer: dict[int, list[str]] = {}
    for site in sites:
        if site.kind == kind:
            of_layer.setdefault(site.depth, []).append(site.name)
    several = next((names for names in of_layer.values() if len(names) > 1), None)
    if several:
        raise ValueError(f"a layer has several sites of {kind}s, {' and '.join(several)}: give masks by site")
    if not isinstance(given, Mapping):
        given = dict.fromkeys(of_layer, given) if given.dim() == 1 else dict(enumerate(given))
    if strangers := given.keys() - of_layer.keys():
        raise ValueError(f"the model has no {kind}s in layer {min(strangers)}; layers that have: {sorted(of_layer)}")
    return {of_layer[layer][0]: mask for layer, mask in given.items()}


def _columns(mask: torch.Tensor, site: Site) -> torch.Tensor:
    """Turns [units] or [B, units] into a factor for the projection's input, [C] or [B, 1, C]."""
    columns = mask.repeat_interleave(site.unit_size, dim=-1)
    return columns.unsqueeze(-2) if mask.dim() > 1 else columns


def _mask(columns: torch.Tensor, stand_in: StandIn | None, hidden: torch.Tensor) -> torch.Tensor:
    """A tap that masks the input of a projection by a factor, [C] or [B, 1, C]."""
    # h less what is missed is the prediction; a factor between 0 and 1 goes a part of the way there.
    return hidden * columns if stand_in is None else hidden - stand_in.missed(hidden) * (1 - columns)


def _pass_by(forward: Any, mask: torch.Tensor, *given: Any, **named: Any) -> Any:
    """Runs a layer, and gives what it was given in the place of what it makes of that where the mask is 0.

    Args:
        forward: The layer's own.
        mask: [1] or [B, 1].
        given, named: What the layer is given; hidden states [B, T, D] come first.
    """
    states = given[0] if given else named["hidden_states"]
    made = forward(*given, **named)
    first = made[0] if isinstance(made, tuple) else made
    mixed = torch.lerp(states, first, mask.unsqueeze(-1) if mask.dim() > 1 else mask)
    return (mixed, *made[1:]) if isinstance(made, tuple) else mixed


def _route(forward: Any, mask: torch.Tensor, hidden: torch.Tensor) -> Any:
    """Runs a router with the logits of experts moved by the logarithm of their mask, -inf for those that are gone.

    A softmax over logits of which some are -inf is that over the others, so the router does what it would do with the
    rows of its weights cut out. Routers that choose by something else than what they weigh by (a sigmoid and a bias
    for each expert) do not choose those either.

    Args:
        forward: The router's own.
        mask: [E] or [B, E].
        hidden: [N, D] or [B, T, D].
    """
    smallest = torch.finfo(mask.dtype).tiny
    shift = mask.clamp(min=smallest).log().masked_fill(mask == 0, -torch.inf)
    positions = hidden.shape[:-1].numel()
    with _Shifted(shift.repeat_interleave(positions // len(shift), dim=0) if shift.dim() > 1 else shift):
        return forward(hidden)


class _Shifted(TorchFunctionMode):
    """Adds something to the result of every linear map that runs meanwhile; where it is -inf, nothing is chosen."""

    def __init__(self, shift: torch.Tensor) -> None:
        super().__init__()
        self.shift = shift

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.topk and args[0].shape[1:] == self.shift.shape[-1:]:
            args = (args[0].masked_fill(self.shift == -torch.inf, -torch.inf), *args[1:])
        result = func(*args, **(kwargs or {}))
        return result + self.shift if func is linear else result
