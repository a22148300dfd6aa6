"""UCB1."""

from dataclasses import dataclass

import numpy as np

from hf_mabprune.policies.base import POLICIES, Floats, Ints, Policy
from hf_mabprune.registry import option


@POLICIES.register("ucb1")
@dataclass(kw_only=True)
class UCB1(Policy):
    """Every arm once, in random order, then argmax_a u(mean_a) + c sqrt(2 ln t / n_a), u the map to [0, 1].

    t and n_a are effective pulls; in a new context an arm is "pulled once" if `memory` left it any.

    Several arms a round: the k largest indices. The index of one does not yet know the rewards of the others, as under
    a feedback delayed by up to k - 1 plays.

    Source: Auer, Cesa-Bianchi & Fischer 2002, figure 1 (c = 1). The defaults are this project's.
    """

    c: float = option(1.0, "weight of the exploration bonus")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.c < np.inf:
            raise ValueError(f"c must be finite and at least 0, got {self.c}")

    def indices(self) -> Floats:
        """[K], the upper confidence bounds; infinite for arms without pulls."""
        pulled = self.pulls > 0
        log_t = np.log(max(1.0, self.total_pulls()))
        index = np.full(self.arms, np.inf)
        index[pulled] = self.unit(self.means())[pulled] + self.c * np.sqrt(2.0 * log_t / self.pulls[pulled])
        return index

    def select(self, k: int) -> Ints:
        return self.largest(self.indices(), k)
