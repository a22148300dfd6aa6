"""Exp3, multiplicative weights for bandit feedback."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from hf_mabprune.policies.base import POLICIES, Floats, Ints, Policy
from hf_mabprune.registry import option
from hf_mabprune.states import Entry, Values


@POLICIES.register("exp3")
@dataclass(kw_only=True)
class Exp3(Policy):
    """p_a = (1 - gamma) w_a / sum w + gamma / K; w_a <- w_a exp(gamma r_a / (p_a K)) for pulled arms only.

    r_a is the reward mapped to [0, 1], K the arms alive. Log weights are gamma v_a u(y_a / v_a) with v_a the sum of
    1 / (p_a K) and y_a the sum of reward / (p_a K) over the pulls of arm a. For a reward that u does not clip this is
    the sum of the steps above, whichever map is in use; a new context scales it by `memory`.

    Several arms a round: drawn from p one after another without replacement. All pulls of one update have the p from
    before it, and p_a is the probability of one draw, so a round is k textbook plays with their rewards in one piece.
    An arm with k p_a > 1, which would be drawn more than once with replacement, is credited once: its gain is
    underestimated.

    Source: Auer, Cesa-Bianchi, Freund & Schapire 2002, figure 1. The defaults are this project's.
    """

    STATE: ClassVar[Mapping[str, Entry]] = {
        **Policy.STATE, "importance": Values(float, low=0), "gains": Values(float),
    }  # fmt: skip

    gamma: float = option(0.1, "share of uniform exploration, and learning rate")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.gamma <= 1.0:
            raise ValueError(f"gamma must be in (0, 1], got {self.gamma}")
        self.importance = np.zeros(self.arms)  # [K], v_a
        self.gains = np.zeros(self.arms)  # [K], y_a

    def log_weights(self) -> Floats:
        """[K], ln w, 0 for arms without pulls."""
        pulled = self.importance > 0
        estimates = np.divide(self.gains, self.importance, out=np.zeros(self.arms), where=pulled)
        return self.gamma * self.importance * self.unit(estimates)

    def probabilities(self) -> Floats:
        """[K], p, 0 for removed arms."""
        uniform = self.alive / max(1, self.number_alive())
        return (1.0 - self.gamma) * self.softmax(self.log_weights()) + self.gamma * uniform

    def select(self, k: int) -> Ints:
        probabilities = self.probabilities()
        return self.draw(np.log(probabilities, out=np.zeros(self.arms), where=self.alive), k)

    def _take_in(self, arms: Ints, rewards: Floats, controls: Floats | None = None) -> None:
        weights = 1.0 / (self.probabilities()[arms] * self.number_alive())
        np.add.at(self.importance, arms, weights)
        np.add.at(self.gains, arms, weights * rewards)
        super()._take_in(arms, rewards, controls)

    def contradictions(self, state: dict[str, Any]) -> Iterator[str]:
        """See `Policy.contradictions`; 1 / (p_a K) is at most 1 / gamma."""
        yield from super().contradictions(state)
        if (state["importance"] * self.gamma > state["pulls"] * (1 + 1e-6)).any():
            yield "importance is more than pulls can give"

    def _discount(self) -> None:
        super()._discount()
        for sums in (self.importance, self.gains):
            sums[self.alive] *= self.memory
