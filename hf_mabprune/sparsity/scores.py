"""What zeros are worth: a score for each group of weights that goes together, and which groups stay.

A kind of sparsity says which of a unit's weights go together. With w the weights of a module, [O, I, K]: single
weights (`unstructured`), the K entries between one input and one unit (`connection`), all I K of a unit
(`structured`). Scores have the shape of the weights, with 1 where a group runs; the lowest go.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hf_mabprune.sparsity.weights import Weights

Loss = Callable[[nn.Module, Any], torch.Tensor]


@dataclass(frozen=True)
class Kind:
    """What goes together.

    Attributes:
        dims: Dimensions of [O, I, K] that one group runs over.
        scopes: Where the rate holds; the first is the usual one.
    """

    dims: tuple[int, ...]
    scopes: tuple[str, ...]

    def sums(self, weights: torch.Tensor) -> torch.Tensor:
        """Adds up over each group, [O, I, K] -> as many dimensions, 1 where a group runs."""
        return weights.sum(self.dims, keepdim=True) if self.dims else weights

    def size(self, weights: torch.Tensor) -> int:
        """Counts the weights in one group of [O, I, K]."""
        return math.prod(weights.shape[dim] for dim in self.dims)


KINDS = {
    "unstructured": Kind((), ("global", "module", "unit")),
    "connection": Kind((2,), ("unit", "module", "global")),
    "structured": Kind((1, 2), ("module", "global")),
}
CRITERIA = ("magnitude", "first_order", "random")


def magnitude(weights: Sequence[Weights], kind: Kind) -> list[torch.Tensor]:
    """Scores groups by their L1 norm for each weight in them, sum |w| / size, so that modules of different kernels can
    be compared.

    Returns:
        Scores of each module, float32.
    """
    values = [each.values().float().abs() for each in weights]
    return [kind.sums(value) / kind.size(value) for value in values]


def random(weights: Sequence[Weights], kind: Kind, seed: int) -> list[torch.Tensor]:
    """Draws scores, uniform in [0, 1); with the same seed a higher rate takes what a lower one takes, and more."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [kind.sums(each.values()).shape for each in weights]
    devices = [each.parameter.device for each in weights]
    return [torch.rand(shape, generator=generator).to(device) for shape, device in zip(shapes, devices, strict=True)]


def first_order(
    model: nn.Module, weights: Sequence[Weights], kind: Kind, batches: Iterable[Any], loss: Loss
) -> list[torch.Tensor]:
    """Scores groups by what the loss changes to first order when they go, |sum w dL/dw| / size, added up over batches.

    For single weights this is |w dL/dw| (Molchanov et al., arXiv 1906.10771, section 3, without their square).
    Raises ValueError for no batches, and for gradients that are not finite.
    """
    scores = [torch.zeros_like(kind.sums(each.values()), dtype=torch.float32) for each in weights]
    parameters = [each.parameter for each in weights]
    wanted, modes = [parameter.requires_grad for parameter in parameters], [(m, m.training) for m in model.modules()]
    model.eval()
    count = 0
    try:
        for parameter in parameters:
            parameter.requires_grad_(True)
        for batch in batches:
            with torch.enable_grad():
                value = loss(model, batch)
                gradients = torch.autograd.grad(value, parameters, allow_unused=True)
            for each, score, gradient in zip(weights, scores, gradients, strict=True):
                if gradient is not None:
                    effect = each.values().float() * each.by_unit(gradient).float()
                    score += kind.sums(effect).abs() / kind.size(effect)
            count += 1
    finally:
        for parameter, flag in zip(parameters, wanted, strict=True):
            parameter.requires_grad_(flag)
        for module, mode in modes:
            module.training = mode
    if not count:
        raise ValueError("criterion first_order takes one batch or more, got none")
    for each, score in zip(weights, scores, strict=True):
        if not bool(score.isfinite().all()):
            raise ValueError(
                f"criterion first_order: gradients of {each.name} are not finite; look for broken batches"
            )
    return scores


def model_loss(model: nn.Module, batch: Any) -> torch.Tensor:
    """Gives the loss that a model of transformers computes for a batch with labels."""
    if not isinstance(batch, Mapping):
        raise ValueError("batches must be mappings with labels that the model takes; for others give a loss")
    value = getattr(model(**batch), "loss", None)
    if value is None:
        raise ValueError("the model gives no loss for these batches: add labels, or give a loss")
    return value


def kept(scores: Sequence[torch.Tensor], sizes: Sequence[int], rate: float, scope: str) -> list[torch.Tensor]:
    """Says which groups stay: all but the lowest, as near to the rate as whole groups come.

    Args:
        scores: Of each module, of any shape with units first.
        sizes: Weights in a group of each module.
        rate: Part of the weights that goes, [0, 1).
        scope: Where the rate holds: "unit", in every unit of every module; "module"; "global", over all.

    Returns:
        Of each module, in the shape of its scores, True for what stays. Among equal scores the first go.
    """
    if scope == "unit":
        return [_without_lowest_in_rows(score.flatten(1), rate).view_as(score) for score in scores]
    if scope == "module":
        return [_without_lowest(score.flatten(), round(rate * score.numel())).view_as(score) for score in scores]
    together = torch.cat([score.flatten() for score in scores])
    count = round(rate * len(together)) if len(set(sizes)) == 1 else _count(scores, sizes, rate)
    parts = _without_lowest(together, count).split([score.numel() for score in scores])
    return [part.view_as(score) for part, score in zip(parts, scores, strict=True)]


def _count(scores: Sequence[torch.Tensor], sizes: Sequence[int], rate: float) -> int:
    """Counts the lowest groups of different sizes that together come nearest to the rate."""
    order = torch.cat([score.flatten() for score in scores]).argsort(stable=True)
    each = torch.cat([torch.full((score.numel(),), size) for score, size in zip(scores, sizes, strict=True)])
    gone = torch.cat([torch.zeros(1, dtype=torch.long), each.to(order.device)[order].cumsum(0).cpu()])
    return int((gone - rate * float(gone[-1])).abs().argmin())


def _without_lowest(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Marks all but the `count` lowest of [n]."""
    if not count:
        return torch.ones_like(scores, dtype=torch.bool)
    limit = scores.kthvalue(count).values
    gone = scores < limit
    gone[(scores == limit).nonzero().flatten()[: count - int(gone.sum())]] = True
    return ~gone


def _without_lowest_in_rows(scores: torch.Tensor, rate: float) -> torch.Tensor:
    """Marks all but the lowest in each row of [O, n], the same number in each."""
    lowest = scores.argsort(dim=1, stable=True)[:, : round(rate * scores.shape[1])]
    return torch.ones_like(scores, dtype=torch.bool).scatter_(1, lowest, False)
