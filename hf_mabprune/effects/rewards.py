"""From what a pull measured to a reward, per example; higher = safer to remove. Pure functions.

Symbols: B examples, P positions that count, C classes or vocabulary; S the context (arms already removed), a the arm.
Each reward compares the model without S + a to the model without S, on the same examples.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Observation:
    """What one forward pass says about each example. Quantities that nobody asked for are empty, [0].

    Attributes:
        loss: [B] or [A, B] for A arms, float64, mean loss over the example's positions.
        kl: [B] or [A, B], float64, mean KL divergence of this model's output from the dense model's.
        correct: [B] or [A, B], float64, fraction of the example's positions predicted right; NaN for outputs that are
            neither right nor wrong.
    """

    loss: torch.Tensor
    kl: torch.Tensor
    correct: torch.Tensor


def loss(original: Observation, context: Observation, pulled: Observation) -> torch.Tensor:
    """The paper's reward: the signed fall in loss, L(S) - L(S + a) (arXiv 2606.07615)."""
    return context.loss - pulled.loss


def kl(original: Observation, context: Observation, pulled: Observation) -> torch.Tensor:
    """How little the output moves from the dense model's: KL(S) - KL(S + a). The default: it punishes movement,
    so removals that each lower the loss a little do not add up to a destroyed model."""
    return context.kl - pulled.kl


def squared(original: Observation, context: Observation, pulled: Observation) -> torch.Tensor:
    """Squared change of each example's loss from the dense model's, before minus after."""
    return (context.loss - original.loss).square() - (pulled.loss - original.loss).square()


def accuracy(original: Observation, context: Observation, pulled: Observation) -> torch.Tensor:
    """Change in accuracy, correct(S + a) - correct(S)."""
    return pulled.correct - context.correct


Reward = Callable[[Observation, Observation, Observation], torch.Tensor]
REWARDS: dict[str, Reward] = {"kl": kl, "loss": loss, "squared": squared, "accuracy": accuracy}
QUANTITIES = ("loss", "kl", "correct")
# What each reward reads: over a large vocabulary, every quantity costs about as much as a layer.
NEEDS: dict[str, tuple[str, ...]] = {"kl": ("kl",), "loss": ("loss",), "squared": ("loss",), "accuracy": ("correct",)}
