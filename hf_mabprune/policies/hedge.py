"""Hedge, multiplicative weights with full information."""

from dataclasses import dataclass

import numpy as np

from hf_mabprune.policies.base import POLICIES, Floats, Ints, Policy
from hf_mabprune.registry import option


@POLICIES.register("hedge")
@dataclass(kw_only=True)
class Hedge(Policy):
    """w_a <- w_a exp(eta r_a) for all arms whose reward was seen this round; arms are drawn from p = w / sum w.

    r_a is the reward mapped to [0, 1]. The log weights are eta n_a u(mean_a), the sum over all pulls, so several pulls
    of an arm in one round add up, and a new context scales the log weights by `memory`.

    Several arms a round: drawn from p one after another without replacement. Hedge expects the reward of every arm
    every round; arms that were not drawn count as having had reward 0 here, which favours arms already drawn. Exp3
    corrects for that.

    Source: Freund & Schapire 1997, figure 1, with gains in place of losses (w exp(eta r)). The defaults are this
    project's.
    """

    eta: float = option(0.5, "learning rate")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.eta < np.inf:
            raise ValueError(f"eta must be finite and above 0, got {self.eta}")

    def log_weights(self) -> Floats:
        """[K], ln w, 0 for arms without pulls."""
        return self.eta * self.pulls * self.unit(self.means())

    def probabilities(self) -> Floats:
        """[K], p, 0 for removed arms."""
        return self.softmax(self.log_weights())

    def select(self, k: int) -> Ints:
        return self.draw(self.log_weights(), k)
