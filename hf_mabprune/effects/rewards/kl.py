"""KL: how little the output moves from the dense model's."""

import torch

from hf_mabprune.effects.rewards.base import REWARDS, Observation, Reward


@REWARDS.register("kl")
class KL(Reward):
    """Measures how little the output moves from the dense model's: KL(S) - KL(S + a).

    The default: it punishes movement, so removals that each lower the loss a bit do not add up to a destroyed model.
    """

    needs = ("kl",)

    def __call__(self, dense: Observation, context: Observation, pulled: Observation) -> torch.Tensor:
        """See `Reward`."""
        return context.kl - pulled.kl
