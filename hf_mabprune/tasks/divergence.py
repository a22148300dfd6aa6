"""The KL divergence between two softmax outputs, exact for effects of 1e-8.

Symbols: C classes or vocabulary.
"""

import math

import numpy as np
import torch

SERIES = {3: 0.05, 8: 0.5}  # terms of e^d - 1 - d -> the largest |d| that they are exact for, to rounding in float32
LARGE_VOCABULARY = 1024
CACHED = 2**17  # numbers that stay in the cache of a CPU while they are worked on


def probabilities_of(logits: torch.Tensor) -> torch.Tensor:
    """softmax, [..., C], in the precision of `kl_divergence`: float64 for up to 1,024 classes."""
    wide = logits.shape[-1] <= LARGE_VOCABULARY or logits.dtype == torch.float64
    return logits.to(torch.float64 if wide else torch.float32).softmax(dim=-1)


def kl_divergence(
    original: torch.Tensor, logits: torch.Tensor, probabilities: torch.Tensor | None = None
) -> torch.Tensor:
    """KL(p || q) of softmax outputs, from the difference of the logits and without cancellation.

    With d = z - z0 - E_p[z - z0], KL = log E_p[e^d] = log(1 + E_p[e^d - 1 - d]); every term e^d - 1 - d is positive
    and, where d is small, taken from its series. So effects of 1e-8 keep their digits.

    Args:
        original: [..., C], logits z0 of the dense model; p = softmax(z0).
        logits: [..., C], or with more dimensions in front; logits z of the model at hand; q = softmax(z).
        probabilities: [..., C], p where it is at hand, from `probabilities_of`.

    Returns:
        [...], in nats, never negative. Float64 for up to 1,024 classes, else float32. Differentiable; where gradients
        are asked for, the value comes from the difference of two logarithms, and may cancel.
    """
    p = probabilities_of(original) if probabilities is None else probabilities
    if torch.is_grad_enabled() and logits.requires_grad:
        before, now = (each.to(p.dtype).log_softmax(dim=-1) for each in (original, logits))
        return (p * (before - now)).sum(dim=-1)
    classes = logits.shape[-1]
    if classes <= LARGE_VOCABULARY or logits.device.type != "cpu":
        return _divergence(original, logits, p)
    found = p.new_empty(logits.shape[:-1])
    step = max(1, CACHED // classes)
    for place in np.ndindex(logits.shape[:-2]):
        example = place[len(place) - original.ndim + 2 :]
        for at in range(0, logits.shape[-2], step):
            rows = slice(at, at + step)
            found[place][rows] = _divergence(original[example][rows], logits[place][rows], p[example][rows])
    return found


def _divergence(original: torch.Tensor, logits: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """[..., C] each -> [...]."""
    change = logits.to(p.dtype) - original.to(p.dtype)
    change -= torch.linalg.vecdot(p, change).unsqueeze(-1)
    divergence = torch.log1p(torch.linalg.vecdot(p, _excess(change)))
    if not (finite := divergence.isfinite()).all():  # e^d overflows, or meets a p that underflows
        whole = torch.logsumexp(original.to(p.dtype).log_softmax(dim=-1) + change, dim=-1)
        divergence = torch.where(finite, divergence, whole)
    return divergence


def _excess(change: torch.Tensor) -> torch.Tensor:
    """e^d - 1 - d, element by element: by its series where that is exact, which needs no transcendental function."""
    largest = change.abs().amax() if change.device.type == "cpu" else None
    for terms, limit in SERIES.items():
        if largest is not None and largest < limit:
            factors = [1 / math.factorial(power) for power in range(terms + 1, 1, -1)]
            excess = change * factors[0]
            for factor in factors[1:]:
                excess.add_(factor).mul_(change)
            return excess.mul_(change)
    terms, limit = next(iter(SERIES.items()))
    series = change.square() * (0.5 + change / 6 + change.square() / 24)
    return torch.where(change.abs() < limit, series, torch.expm1(change) - change)
