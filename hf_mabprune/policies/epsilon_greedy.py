"""Epsilon-greedy."""

from dataclasses import dataclass

import numpy as np

from hf_mabprune.policies.base import POLICIES, Ints, Policy
from hf_mabprune.registry import option


@POLICIES.register("epsilon_greedy")
@dataclass(kw_only=True)
class EpsilonGreedy(Policy):
    """With probability eps_t a uniformly random arm, else argmax_a mean_a.

    eps_t = epsilon, or with `decay` eps_t = min(1, epsilon * K / t), K arms alive and t = 1 + pulls so far. Arms
    without pulls count as average ones (`Policy.means`): exploring is left to eps_t.

    Several arms a round: each of the k slots is uniform or greedy independently of the others, all with the same
    eps_t. The uniform slots are filled first, from all living arms; the greedy ones take the best of the rest.

    Source: Sutton & Barto 2018, section 2.2; decay: Auer, Cesa-Bianchi & Fischer 2002, figure 3 (epsilon = c/d^2).
    The defaults are this project's.
    """

    epsilon: float = option(0.1, "probability of a random arm; with decay the factor of K / t, which may exceed 1")
    decay: bool = option(False, "lower the probability as epsilon * (living arms) / (pulls so far + 1)")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.decay and not 0.0 <= self.epsilon <= 1.0:
            raise ValueError(f"epsilon must be in [0, 1], got {self.epsilon}")
        if self.decay and not 0.0 <= self.epsilon < np.inf:
            raise ValueError(f"epsilon must be finite and at least 0, got {self.epsilon}")

    def probability(self) -> float:
        """eps_t, the probability that a slot is filled at random."""
        if not self.decay:
            return self.epsilon
        return min(1.0, self.epsilon * self.number_alive() / (1.0 + self.total_pulls()))

    def select(self, k: int) -> Ints:
        index = self.means()
        uniform_slots = self.rng.binomial(min(max(k, 0), self.number_alive()), self.probability())
        index[self.rng.choice(np.flatnonzero(self.alive), uniform_slots, replace=False)] = np.inf
        return self.largest(index, k)
