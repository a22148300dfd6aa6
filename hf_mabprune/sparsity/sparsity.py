"""Puts zeros into the weights of a network, and counts them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from hf_mabprune.sparsity.masks import hold, let_go, mask_of
from hf_mabprune.sparsity.scores import (
    CRITERIA,
    KINDS,
    Loss,
    first_order,
    kept,
    magnitude,
    model_loss,
    random,
)
from hf_mabprune.sparsity.weights import Weights, find_weights


@dataclass(frozen=True)
class Sparsity:
    """The zeros in a network: what was asked for, and what is there whenever it is read.

    Attributes:
        kind, criterion, scope, rate: As asked for.
        left_out: Linear layers and convolutions that were not counted, with the reason, by name.
    """

    kind: str
    criterion: str
    scope: str
    rate: float
    left_out: dict[str, str]
    _weights: Sequence[Weights] = field(repr=False)

    @property
    def zeros(self) -> int:
        """Counted weights that are exactly zero now."""
        return sum(_zeros(each) for each in self._weights)

    @property
    def weights(self) -> int:
        """Counted weights."""
        return sum(each.parameter.numel() for each in self._weights)

    @property
    def achieved(self) -> float:
        """Part of the counted weights that is zero now."""
        return self.zeros / self.weights

    @property
    def rates(self) -> dict[str, float]:
        """The same by module."""
        return {each.name: _zeros(each) / each.parameter.numel() for each in self._weights}

    @property
    def kept_units(self) -> dict[str, torch.Tensor]:
        """By module, [O] bool: units with a weight that is not zero now."""
        return {each.name: (each.values() != 0).flatten(1).any(1) for each in self._weights}

    @property
    def held(self) -> bool:
        """Whether masks hold the zeros."""
        return any(mask_of(each.module) is not None for each in self._weights)

    def make_permanent(self) -> None:
        """Writes the zeros into plain parameters, under their own names, and takes the masks away: once training has
        ended, before a model is saved or handed on. What is trained afterwards can grow back."""
        for each in self._weights:
            let_go(each.module, "weight")
            let_go(each.module, "bias")


def sparsify(
    model: nn.Module,
    rate: float,
    *,
    kind: str = "unstructured",
    criterion: str = "magnitude",
    scope: str | None = None,
    batches: Iterable[Any] | None = None,
    loss: Loss | None = None,
    exclude: Sequence[str] = (),
    head: bool = False,
    held: bool = True,
    seed: int = 0,
) -> Sparsity:
    """Sets the weights of the lowest scores to zero, in place.

    Rates are of all counted weights and cumulative: what is zero already goes first, so that 0.8 after 0.4 means 80%
    in all, and what a mask holds stays at zero, whatever lower rate is asked for.

    Args:
        model: Any network: linear layers, convolutions and transformers' Conv1D count (`find_weights`).
        rate: Part of the counted weights that is zero afterwards, [0, 1).
        kind: What goes together: "unstructured", single weights; "connection", what joins one input to one unit (of a
            convolution the whole kernel slice between an input channel and an output channel, of a linear layer one
            weight); "structured", a whole unit (an output channel with its bias).
        criterion: What ranks it: "magnitude", the L1 norm for each weight; "first_order", |w dL/dw| over `batches`;
            "random".
        scope: Where the rate holds: "global", over all modules together; "module", in each; "unit", in each unit of
            each. None takes global for unstructured, unit for connection, module for structured.
        batches: Calibration batches, for first_order.
        loss: (model, batch) -> scalar loss to differentiate; None takes that of a model of transformers.
        exclude: Names of modules to leave out, with all that is in them; * stands for anything.
        head: Whether the last layer counts too.
        held: Whether masks hold the zeros through training, until `Sparsity.make_permanent`; else they are only
            written, and what is trained afterwards can grow back.
        seed: Seed of random scores; with the same one a higher rate takes what a lower one takes, and more.

    Raises:
        ValueError: For a rate, kind, criterion or scope that is not one, batches that are missing or of no use, a
            module that is not there or weights that cannot take zeros.
    """
    check_options(rate, kind, criterion, scope, batches is not None)
    weights, left_out = find_weights(model, exclude, head)
    groups = KINDS[kind]
    scope = scope or groups.scopes[0]
    with torch.no_grad():
        if criterion == "first_order":
            scores = first_order(model, weights, groups, batches or (), loss or model_loss)
        elif criterion == "magnitude":
            scores = magnitude(weights, groups)
        else:
            scores = random(weights, groups, seed)
        for each, score in zip(weights, scores, strict=True):
            score[groups.sums((each.values() != 0).float()) == 0] = -1
        sizes = [groups.size(each.values()) for each in weights]
        for each, keep in zip(weights, kept(scores, sizes, rate, scope), strict=True):
            hold(each.module, "weight", each.as_stored(keep.expand(each.values().shape)))
            if kind == "structured" and each.module.bias is not None:
                hold(each.module, "bias", keep.flatten())
    sparsity = Sparsity(kind, criterion, scope, rate, left_out, weights)
    if not held:
        sparsity.make_permanent()
    return sparsity


def _zeros(weights: Weights) -> int:
    return weights.parameter.numel() - int(weights.values().count_nonzero())


def check_options(rate: float, kind: str, criterion: str, scope: str | None, with_batches: bool) -> None:
    """Refuses, with a ValueError, what does not go together, before anything is computed."""
    if not 0 <= rate < 1:
        raise ValueError(f"rate must be in [0, 1), got {rate}")
    for name, value, known in (("kind", kind, tuple(KINDS)), ("criterion", criterion, CRITERIA)):
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
    if scope is not None and scope not in KINDS[kind].scopes:
        raise ValueError(f"scope of {kind} must be one of {', '.join(KINDS[kind].scopes)}, got {scope!r}")
    if criterion == "first_order" and not with_batches:
        raise ValueError("criterion first_order needs calibration data: give batches, or a config that names data")
