"""The KL divergence between two softmax outputs, exact for effects of 1e-8.

Masking one neuron among thousands moves the outputs by so little that log p - log q, the difference of two rounded
logarithms, would be all rounding error. So the divergence is worked out from the difference of the logits, as a sum of
terms that are never negative.

Symbols: C classes or vocabulary; z0, z [C] logits of the dense model and of the one at hand; p, q [C] their softmax.
"""

import math

import numpy as np
import torch

# Terms of the series of e^d - 1 - d = d^2/2! + d^3/3! + ... -> the largest |d| that they are used for.
# Three leave out d^5/5!, a part d^3 / 60 of the value: 2e-6 at 0.05, as much as expm1(d) - d loses there to
# cancellation in float32 (2 eps / d, eps 6e-8). Eight leave out d^10/10!, a part 2e-9 at 0.5: less than eps.
SERIES = {3: 0.05, 8: 0.5}
LARGE_VOCABULARY = 1024
CACHED = 2**17  # numbers that stay in the cache of a CPU while they are worked on


def probabilities_of(logits: torch.Tensor) -> torch.Tensor:
    """Gives the softmax, [..., C], in the precision of `kl_divergence`: float64 for up to 1,024 classes."""
    wide = logits.shape[-1] <= LARGE_VOCABULARY or logits.dtype == torch.float64
    return logits.to(torch.float64 if wide else torch.float32).softmax(dim=-1)


def kl_divergence(
    dense: torch.Tensor, logits: torch.Tensor, probabilities: torch.Tensor | None = None
) -> torch.Tensor:
    """Measures KL(p || q) = sum_y p_y (log p_y - log q_y) from the difference of the logits, without cancellation.

    With q_y = e^z_y / sum e^z and p likewise, KL = log E_p[e^(z - z0)] - E_p[z - z0]. Taking the mean out first,
    d = z - z0 - E_p[z - z0], leaves KL = log E_p[e^d]; and since E_p[d] = 0,

        KL = log(1 + E_p[e^d - 1 - d])

    where every term e^d - 1 - d >= 0 and about d^2 / 2. So nothing cancels, and effects of 1e-8 keep their digits.

    Args:
        dense: Logits z0 of the dense model, [..., C].
        logits: Logits z of the model at hand, [..., C], or with more dimensions in front.
        probabilities: p, [..., C], where it is at hand, from `probabilities_of`.

    Returns:
        [...], in nats, never negative. Float64 for up to 1,024 classes, else float32. Differentiable; where gradients
        are asked for, the value comes from the difference of two logarithms, and may cancel.
    """
    p = probabilities_of(dense) if probabilities is None else probabilities
    if torch.is_grad_enabled() and logits.requires_grad:
        # A plain formula for autograd, whose gradient is q - p; the steps below work in place.
        log_p, log_q = (z.to(p.dtype).log_softmax(dim=-1) for z in (dense, logits))
        return (p * (log_p - log_q)).sum(dim=-1)
    classes = logits.shape[-1]
    if classes <= LARGE_VOCABULARY or logits.device.type != "cpu":
        return _divergence(dense, logits, p)
    # A large vocabulary is read several times: some rows at a time, so that they are still in the cache.
    divergence = p.new_empty(logits.shape[:-1])
    step = max(1, CACHED // classes)
    for place in np.ndindex(logits.shape[:-2]):
        dense_place = place[len(place) - dense.ndim + 2 :]  # without the dimensions that only `logits` has in front
        for start in range(0, logits.shape[-2], step):
            rows = slice(start, start + step)
            divergence[place][rows] = _divergence(dense[dense_place][rows], logits[place][rows], p[dense_place][rows])
    return divergence


def _divergence(dense: torch.Tensor, logits: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """Measures log(1 + E_p[e^d - 1 - d]), [..., C] each -> [...]."""
    change = logits.to(p.dtype) - dense.to(p.dtype)  # z - z0
    change -= torch.linalg.vecdot(p, change).unsqueeze(-1)  # d = z - z0 - E_p[z - z0]
    divergence = torch.log1p(torch.linalg.vecdot(p, excess(change)))
    if not (finite := divergence.isfinite()).all():
        # e^d overflows, or meets a p that underflows (inf * 0). Such a d is large, nothing cancels, and the same value
        # comes from logarithms alone: log E_p[e^d] = logsumexp(log p + d). Logits that are broken stay so.
        in_logarithms = torch.logsumexp(dense.to(p.dtype).log_softmax(dim=-1) + change, dim=-1)
        divergence = torch.where(finite, divergence, in_logarithms)
    return divergence


def excess(change: torch.Tensor) -> torch.Tensor:
    """Works out e^d - 1 - d, element by element; by its series where |d| is small.

    Taken as expm1(d) - d it would cancel: both are about d, and the result about d^2 / 2. On a CPU the series is also
    faster, since it needs no transcendental function, so a longer one serves larger d where it does for all elements.
    """
    # On a GPU the processor would have to wait for the largest element.
    largest = change.abs().amax() if change.device.type == "cpu" else None
    for terms, limit in SERIES.items():
        if largest is not None and largest < limit:
            # Horner's rule, from 1/(terms + 1)! down to 1/2!, and d^2 times that.
            factors = [1 / math.factorial(power) for power in range(terms + 1, 1, -1)]
            excess = change * factors[0]
            for factor in factors[1:]:
                excess.add_(factor).mul_(change)
            return excess.mul_(change)
    terms, limit = next(iter(SERIES.items()))
    series = change.square() * (0.5 + change / 6 + change.square() / 24)
    return torch.where(change.abs() < limit, series, torch.expm1(change) - change)
