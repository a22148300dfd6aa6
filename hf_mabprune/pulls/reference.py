"""Reference pulls: mask and forward, twice. Slow, simple, and what every faster engine is checked against."""

from collections.abc import Iterator

from hf_mabprune.pulls.base import Ints, Pulls
from hf_mabprune.rewards import Observation


class ReferencePulls(Pulls):
    """Two full forward passes a pull, as the paper has it: one in the context, one with the arm masked on top."""

    def _measure(self, batch: int, arms: Ints) -> Iterator[tuple[Observation, Observation]]:
        for arm in arms:
            without_arm = self.kept.copy()
            without_arm[arm] = False
            yield self.observe(batch, self.kept), self.observe(batch, without_arm)
