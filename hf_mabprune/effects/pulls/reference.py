"""Reference pulls: mask and forward, twice. Slow, simple, and what every faster engine is checked against."""

from collections.abc import Iterator, Sequence

from hf_mabprune.effects.pulls.base import Ints, Pulls, observation
from hf_mabprune.effects.rewards import Observation


class ReferencePulls(Pulls):
    """Two full forward passes a pull, as the paper has it: one in the context, one with the arm masked on top."""

    def _observe_arms(
        self, place: tuple[int, int], groups: Sequence[Ints]
    ) -> Iterator[tuple[Observation, Observation, Observation, float]]:
        inputs, recorded = self._inputs(place), self._dense(place)
        dense = observation(recorded, recorded.readout, self.reward.needs)
        for arm in groups:  # of one arm each, since `arms_a_forward` stays 1
            without_arm = self.kept.copy()
            without_arm[arm] = False
            context, pulled = (
                observation(recorded, self._forward(inputs, kept, self.stand_ins), self.reward.needs)
                for kept in (self.kept, without_arm)
            )
            yield dense, context, pulled, 2 * inputs.tokens
