"""From what a pull measured to a reward, per example; higher = safer to remove. Pure functions.

Symbols: B examples, P positions that count, C classes or vocabulary; S the context (arms already removed), a the arm.
Each reward compares the model without S + a to the model without S, on the same examples.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

SMALL_LOGIT_CHANGE = 0.05
LARGE_VOCABULARY = 1024
CHUNK = {"cpu": 2**17, "cuda": 2**27}  # logits at a time: on a CPU, what stays in the cache


@dataclass(frozen=True)
class Observation:
    """What one forward pass says about each example. Quantities that nobody asked for are empty, [0].

    Attributes:
        loss: [B] or [A, B] for A arms, float64, mean cross-entropy over the example's positions.
        kl: [B], float64, mean KL divergence of this model's output from the unpruned model's.
        correct: [B], float64, fraction of the example's positions predicted right.
    """

    loss: torch.Tensor
    kl: torch.Tensor
    correct: torch.Tensor

    @classmethod
    def concatenate(cls, parts: Sequence["Observation"]) -> "Observation":
        """Observations of parts of a batch as one; further dimensions, if any, are in front of B."""
        return cls(*(torch.cat([getattr(part, name) for part in parts], dim=-1) for name in QUANTITIES))


def loss(original: Observation, context: Observation, pulled: Observation) -> torch.Tensor:
    """The paper's reward: the signed fall in loss, L(S) - L(S + a) (arXiv 2606.07615)."""
    return context.loss - pulled.loss


def kl(original: Observation, context: Observation, pulled: Observation) -> torch.Tensor:
    """How little the output moves from the unpruned model's: KL(S) - KL(S + a). The default: it punishes movement,
    so removals that each lower the loss a little do not add up to a destroyed model."""
    return context.kl - pulled.kl


def squared(original: Observation, context: Observation, pulled: Observation) -> torch.Tensor:
    """Squared change of each example's loss from the unpruned model's, before minus after."""
    return (context.loss - original.loss).square() - (pulled.loss - original.loss).square()


def accuracy(original: Observation, context: Observation, pulled: Observation) -> torch.Tensor:
    """Change in accuracy, correct(S + a) - correct(S)."""
    return pulled.correct - context.correct


Reward = Callable[[Observation, Observation, Observation], torch.Tensor]
REWARDS: dict[str, Reward] = {"kl": kl, "loss": loss, "squared": squared, "accuracy": accuracy}
QUANTITIES = ("loss", "kl", "correct")
# What each reward reads: over a large vocabulary, every quantity costs about as much as a layer.
NEEDS: dict[str, tuple[str, ...]] = {"kl": ("kl",), "loss": ("loss",), "squared": ("loss",), "accuracy": ("correct",)}


def probabilities_of(logits: torch.Tensor) -> torch.Tensor:
    """softmax, [..., C], in the precision of `kl_divergence`: float64 for up to 1,024 classes, else float32."""
    dtype = torch.float64 if logits.shape[-1] <= LARGE_VOCABULARY else torch.float32
    return logits.to(dtype).softmax(dim=-1)


def kl_divergence(
    original: torch.Tensor, logits: torch.Tensor, probabilities: torch.Tensor | None = None
) -> torch.Tensor:
    """KL(p || q) of softmax outputs, from the difference of the logits and without cancellation.

    With d = z - z0 - E_p[z - z0], KL = log E_p[e^d] = log(1 + E_p[e^d - 1 - d]); every term e^d - 1 - d is positive
    and, where d is small, taken from its series. So effects of 1e-8 keep their digits.

    Args:
        original: [..., C], logits z0 of the unpruned model; p = softmax(z0).
        logits: [..., C], or with more dimensions in front; logits z of the model at hand; q = softmax(z).
        probabilities: [..., C], p where it is at hand, from `probabilities_of`.

    Returns:
        [...], in nats, never negative. Float64 for up to 1,024 classes, else float32.
    """
    p = probabilities_of(original) if probabilities is None else probabilities
    classes = logits.shape[-1]
    rows = original.numel() // classes
    copies = logits.reshape(-1, rows, classes)
    p, start = p.reshape(rows, classes), original.reshape(rows, classes)
    step = max(1, CHUNK.get(logits.device.type, CHUNK["cuda"]) // classes)
    chunks = [
        torch.stack([_divergence(start[at : at + step], copy[at : at + step], p[at : at + step]) for copy in copies])
        for at in range(0, rows, step)
    ]
    return torch.cat(chunks, dim=1).reshape(logits.shape[:-1])


def _divergence(original: torch.Tensor, logits: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """[r, C] each -> [r]."""
    change = logits.to(p.dtype) - original.to(p.dtype)
    change -= torch.linalg.vecdot(p, change)[:, None]
    if change.device.type == "cpu" and change.abs().max() < SMALL_LOGIT_CHANGE:
        excess = (change / 24).add_(1 / 6).mul_(change).add_(0.5).mul_(change).mul_(change)
    else:
        series = change.square() * (0.5 + change / 6 + change.square() / 24)
        excess = torch.where(change.abs() < SMALL_LOGIT_CHANGE, series, torch.expm1(change) - change)
    divergence = torch.log1p(torch.linalg.vecdot(p, excess))
    if not (finite := divergence.isfinite()).all():  # e^d overflows, or meets a p that underflows
        whole = torch.logsumexp(original.to(p.dtype).log_softmax(dim=-1) + change, dim=-1)
        divergence = torch.where(finite, divergence, whole)
    return divergence
