"""Selections: the arms that stay, found by following a search's order of removal or drawn at random."""

from dataclasses import dataclass, replace

import numpy as np

from hf_mabprune.arms import Bools, Ints
from hf_mabprune.selection.plan import Plan
from hf_mabprune.selection.rounding import round_units, round_widths


@dataclass(frozen=True)
class Selection:
    """Which arms of a model stay, and by which plan.

    Attributes:
        plan: Plan whose target it meets.
        kept: [K], arms that stay.
        multiple: Number that kept FFN widths are rounded to a multiple of.
        min_neurons: FFN neurons that every layer keeps at least.
        reason: Why the plan's layout is what it is.
    """

    plan: Plan
    kept: Bools
    multiple: int
    min_neurons: int
    reason: str = ""

    @classmethod
    def along(cls, plan: Plan, order: Ints, multiple: int, min_neurons: int, reason: str = "") -> "Selection":
        """Follows an order of removal from the dense model on, until the target is met.

        Args:
            plan: Plan whose target is to be met.
            order: [K], all arms, first removed first.
            multiple, min_neurons, reason: As in `Selection`.
        """
        scores = np.empty(len(order))
        scores[order] = -np.arange(1, len(order) + 1, dtype=float)
        kept, _ = plan.choose(scores * plan.cost(), np.ones(len(order), dtype=bool))
        return cls(plan, kept, multiple, min_neurons, reason).rounded(order)

    def following(self, order: Ints) -> "Selection":
        """Follows another order of removal, [K], by the same plan and rules."""
        return Selection.along(self.plan, order, self.multiple, self.min_neurons, self.reason)

    def rounded(self, order: Ints) -> "Selection":
        """Moves kept FFN widths to the multiple, and heads to those of the plan; tied sites step by them already.

        Args:
            order: [K], all arms, first removed first; decides which arms go or come back.
        """
        plan, arms, kept = self.plan, self.plan.arms, self.kept
        tied = {site for tied in plan.tied for site in tied.sites}
        if plan.layout == "per_layer" and self.multiple > 1:
            may_go = {site for site, floor in plan.floors.items() if not floor}
            kept = round_widths(arms, order, kept, self.multiple, self.min_neurons, tied, may_go)
        heads = {site: multiple for site, multiple in plan.multiples.items() if site not in tied}
        least = {site: plan.floors[site] * int(arms.units[rows[0]]) for site, rows in arms.groups() if site in heads}
        return replace(self, kept=round_units(arms, order, kept, heads, least))

    def random(self, seed: int) -> "Selection":
        """Draws arms at random, whatever they cost, with the same target, layout, floors and rounding."""
        plan, rng = self.plan, np.random.default_rng(seed)
        scores = rng.random(len(plan.arms)) * plan.cost()
        kept, _ = plan.choose(scores, np.ones(len(scores), dtype=bool))
        return replace(self, kept=kept).rounded(np.argsort(-scores))
