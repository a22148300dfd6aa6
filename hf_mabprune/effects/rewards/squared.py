"""Squared: how far the loss moves from the dense model's, whichever way."""

import torch

from hf_mabprune.effects.rewards.base import REWARDS, Observation, Reward


@REWARDS.register("squared")
class Squared(Reward):
    """Compares squared changes of each example's loss from the dense L0: (L(S) - L0)^2 - (L(S + a) - L0)^2."""

    needs = ("loss",)

    def __call__(self, dense: Observation, context: Observation, pulled: Observation) -> torch.Tensor:
        """See `Reward`."""
        return (context.loss - dense.loss).square() - (pulled.loss - dense.loss).square()
