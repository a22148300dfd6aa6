"""Exhaustive sweep, a control."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from hf_mabprune.policies.base import POLICIES, Ints, Policy
from hf_mabprune.states import WHOLE, Entry, Values


@POLICIES.register("sweep")
@dataclass(kw_only=True)
class Sweep(Policy):
    """Every living arm once per pass, in index order; further passes go on in the same order.

    A round that reaches the end of a pass is filled from the start of the next one. A new context does not restart the
    pass, so that no arm is left out where a context is shorter than a pass. With rewards free of noise no bandit beats
    one pass.
    """

    STATE: ClassVar[Mapping[str, Entry]] = {**Policy.STATE, "position": Values(int, (), 0, WHOLE)}

    def __post_init__(self) -> None:
        super().__post_init__()
        self.position = 0  # the pass goes on with the first living arm from here

    def select(self, k: int) -> Ints:
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        living = np.flatnonzero(self.alive)
        if len(living) == 0:
            return living
        start = np.searchsorted(living, self.position)
        chosen = living[(start + np.arange(min(k, len(living)))) % len(living)]
        self.position = int(chosen[-1]) + 1
        return chosen

    def contradictions(self, state: dict[str, Any]) -> Iterator[str]:
        """See `Policy.contradictions`."""
        yield from super().contradictions(state)
        if state["position"] > self.arms:
            yield "position is beyond the arms"
