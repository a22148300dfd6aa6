"""Uniform allocation, a control."""

from dataclasses import dataclass

from hf_mabprune.policies.base import POLICIES, Ints, Policy


@POLICIES.register("uniform")
@dataclass(kw_only=True)
class Uniform(Policy):
    """Round robin: the k arms with the fewest effective pulls, ties in a seeded random order.

    It learns nothing on the way, so a bandit that is worth its name finds safer arms with as many pulls.
    """

    def select(self, k: int) -> Ints:
        return self.largest(-self.pulls, k)
