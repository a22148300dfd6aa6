"""Interactions: each arm goes in the light of those that went before it, by products of their effects."""

from dataclasses import dataclass

from hf_mabprune.search.rules.base import RULES, EstimatingRule, Removal
from hf_mabprune.selection.plan import Bools, Floats, Plan


@RULES.register("interactions")
@dataclass(kw_only=True)
class WithInteractions(EstimatingRule):
    """Pulls say what each arm costs alone, gradients which arms stand in for each other (`effects.interactions`)."""

    def choose(self, plan: Plan, rewards: Floats, kept: Bools, start: float, progress: float) -> Removal:
        """See `Rule.choose`."""
        return Removal(*self.interactions.remove(plan, rewards, kept, start, progress))
