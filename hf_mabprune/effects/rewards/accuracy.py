"""Accuracy: how many answers stay right."""

import torch

from hf_mabprune.effects.rewards.base import REWARDS, Observation, Reward


@REWARDS.register("accuracy")
class Accuracy(Reward):
    """Gives the change in accuracy, correct(S + a) - correct(S)."""

    needs = ("correct",)

    def __call__(self, dense: Observation, context: Observation, pulled: Observation) -> torch.Tensor:
        """See `Reward`."""
        return pulled.correct - context.correct
