"""Softmax (Boltzmann) exploration."""

from dataclasses import dataclass

import numpy as np

from hf_mabprune.policies.base import POLICIES, Floats, Ints, Policy
from hf_mabprune.registry import option


@POLICIES.register("softmax")
@dataclass(kw_only=True)
class Softmax(Policy):
    """Arm a with probability p_a ~ exp(u(mean_a) / tau_t), u the map to [0, 1].

    tau_t = tau, or with `decay` tau_t = tau / max(1, ln t), t the pulls so far. Arms without pulls count as average
    ones (`Policy.means`).

    Several arms a round: drawn from p one after another without replacement, so an arm that p favours strongly is
    pulled at most once a round and the others more often than p says.

    Source: Sutton & Barto 1998, section 2.3. The defaults are this project's.
    """

    tau: float = option(0.1, "temperature, in units of the range of rewards; lower is greedier")
    decay: bool = option(False, "lower the temperature as tau / ln(pulls so far)")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.tau < np.inf:
            raise ValueError(f"tau must be finite and above 0, got {self.tau}")

    def log_weights(self) -> Floats:
        """[K], u(mean_a) / tau_t."""
        cooling = max(1.0, np.log(max(1.0, self.total_pulls()))) if self.decay else 1.0
        return self.unit(self.means()) * (cooling / self.tau)

    def probabilities(self) -> Floats:
        """[K], p, 0 for removed arms."""
        return self.softmax(self.log_weights())

    def select(self, k: int) -> Ints:
        return self.draw(self.log_weights(), k)
