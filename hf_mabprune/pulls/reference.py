"""Reference pulls: mask and forward, twice. Slow, simple, and what every faster engine is checked against."""

from collections.abc import Iterator

from hf_mabprune.pulls.base import Ints, Pulls, observation
from hf_mabprune.rewards import Observation
from hf_mabprune.tasks.readout import Readout


class ReferencePulls(Pulls):
    """Two full forward passes a pull, as the paper has it: one in the context, one with the arm masked on top."""

    def _measure(self, batch: int, arms: Ints, original: Readout) -> Iterator[tuple[Observation, Observation, int]]:
        for arm in arms:
            without_arm = self.kept.copy()
            without_arm[arm] = False
            context, pulled = (self._forward(batch, kept) for kept in (self.kept, without_arm))
            observed = (observation(original, context, self.needs), observation(original, pulled, self.needs))
            yield *observed, 2 * self._tokens(batch)
