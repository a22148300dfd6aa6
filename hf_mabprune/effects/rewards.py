"""From what a pull measured to a reward, per example; higher = safer to remove. Pure functions.

Each reward compares the model without S + a to the model without S, on the same examples, from three observations: of
the dense model, in the context and pulled. KL(S) and L(S) are divergence from the dense model and loss without S.
Symbols: A arms, B examples; S the context (arms already removed), a the arm.
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


def loss(dense: Observation, context: Observation, pulled: Observation) -> torch.Tensor:
    """Gives the paper's reward: the signed fall in loss, L(S) - L(S + a) (arXiv 2606.07615)."""
    return context.loss - pulled.loss


def kl(dense: Observation, context: Observation, pulled: Observation) -> torch.Tensor:
    """Measures how little the output moves from the dense model's: KL(S) - KL(S + a).

    The default: it punishes movement, so removals that each lower the loss a bit do not add up to a destroyed model.
    """
    return context.kl - pulled.kl


def squared(dense: Observation, context: Observation, pulled: Observation) -> torch.Tensor:
    """Compares squared changes of each example's loss from the dense L0: (L(S) - L0)^2 - (L(S + a) - L0)^2."""
    return (context.loss - dense.loss).square() - (pulled.loss - dense.loss).square()


def accuracy(dense: Observation, context: Observation, pulled: Observation) -> torch.Tensor:
    """Gives the change in accuracy, correct(S + a) - correct(S)."""
    return pulled.correct - context.correct


Reward = Callable[[Observation, Observation, Observation], torch.Tensor]
REWARDS: dict[str, Reward] = {"kl": kl, "loss": loss, "squared": squared, "accuracy": accuracy}
QUANTITIES = ("loss", "kl", "correct")
# What each reward reads: over a large vocabulary, every quantity costs about as much as a layer.
NEEDS: dict[str, tuple[str, ...]] = {"kl": ("kl",), "loss": ("loss",), "squared": ("loss",), "accuracy": ("correct",)}
