"""Loss: what the removal does to it."""

import torch

from hf_mabprune.effects.rewards.base import REWARDS, Observation, Reward


@REWARDS.register("loss")
class Loss(Reward):
    """Gives the paper's reward: the signed fall in loss, L(S) - L(S + a) (arXiv 2606.07615)."""

    needs = ("loss",)

    def __call__(self, dense: Observation, context: Observation, pulled: Observation) -> torch.Tensor:
        """See `Reward`."""
        return context.loss - pulled.loss
