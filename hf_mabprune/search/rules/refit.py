"""Refit: what counts is the model as it will be once all that stays has been refitted.

A layer whose arms stand in for each other loses little when one goes, but masking does not show it: the stand-ins have
other weights until they are refitted. So four things are brought together:

- `along`, the cost of each arm in the order in which its layer's arms go, each removal followed by a refit of what
  stays, in the metric of the outputs (`effects.refit_costs`). It sees sets, but takes positions as independent.
- pulls with stand-ins: the model itself, with one arm replaced by what the others of its layer predict of it. They see
  the outputs as they are, but one arm at a time; `alone` is what `along` would say of them.
- effects with stand-ins, from gradients: what pulls would say, to second order, for all arms at once.
- whole allocations of the removals to layers, each cut, refitted and measured on held-out data (`search.allocation`).

The cost that removals go by is `along`, corrected by measured over predicted cost of the arm alone; allocations have
the last word on how much goes from which layer.
"""

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from hf_mabprune.compensation import refit
from hf_mabprune.compensation.least_squares import LeastSquares
from hf_mabprune.effects import gradients, refit_costs
from hf_mabprune.effects.kfac import backward_passes
from hf_mabprune.effects.memory import Sizes
from hf_mabprune.effects.pulls import Pulls
from hf_mabprune.effects.pulls.cost import Cost
from hf_mabprune.effects.refit_costs import RefitCosts
from hf_mabprune.registry import option
from hf_mabprune.search.allocation import APART, Allocation
from hf_mabprune.search.rules.base import RULES, EstimatingRule, Extent, Removal, RuleMemory
from hf_mabprune.selection.plan import Bools, Floats, Plan
from hf_mabprune.session import Session
from hf_mabprune.tasks.vocabulary import large_head

STATISTICS = 2  # second moments that costs are made from: plain, and weighted by gradients
MOST_PULLS = 640  # by default
LAST_SETS = 2  # that are measured on all held-out examples
LIMIT = 8.0  # largest correction of a cost, and its inverse the smallest


@RULES.register("refit")
@dataclass(kw_only=True)
class Refit(EstimatingRule):
    """One round of pulls with stand-ins, then whole allocations measured on the refitted model.

    Args:
        moves: Passes over the held-out examples that measure allocations of each size; 0 goes by the corrected costs
            alone.
    """

    default_rounds: ClassVar[int] = 1

    moves: int = option(
        48, "passes over held-out examples that measure allocations of removals to layers, refitted; 0: none"
    )
    costs: RefitCosts | None = field(default=None, init=False, repr=False)
    allocation: Allocation | None = field(default=None, init=False, repr=False)
    _unpulled: bool = field(default=False, init=False, repr=False)  # whether no arm is measured by itself

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.moves < 0:
            raise ValueError(f"moves must be at least 0, got {self.moves}")

    def default_pulls(self, session: Session) -> float:
        """See `Rule.default_pulls`: none where the vocabulary is large, for there a pull costs as much as a part of an
        allocation, which says more; else one an arm, of few arms."""
        large = session.task.predicts_tokens and large_head(session.dense) is not None
        return 0.0 if large else min(1.0, MOST_PULLS / len(session.arms))

    def begin(self, pulls: Pulls, number: int) -> Floats | None:
        """See `Rule.begin`; effects are estimated where pulls are made, or asked for with none."""
        return None if self._unpulled else super().begin(pulls, number)

    def prepare(self, session: Session) -> None:
        """Finds the costs of removals with refits; they, the stand-ins and the refits themselves share one damping.

        Raises:
            ValueError: If the run refits by anything but least squares, which is what costs and stand-ins are of.
        """
        method = session.compensation
        if not isinstance(method, LeastSquares):
            raise ValueError("search.rule refit counts on compensation least_squares: set it, or take another rule")
        batches = session.batches["calibration"]
        seed = session.settings.seed
        self._unpulled = session.settings.search.pulls_per_arm is None and not self.default_pulls(session)
        data = session.dense, session.arms, session.task, batches
        self.costs = RefitCosts.of(*data, seed, method.damping, session.reserve)
        self.stand_ins, self.cost = self.costs.stand_ins, self.costs.cost
        if self.moves:
            self.allocation = Allocation(method, session.reference, self.moves, seed)
            self.planned = self.moves * len(session.settings.prune.sizes())

    def choose(self, plan: Plan, rewards: Floats, kept: Bools, start: float, progress: float) -> Removal:
        """See `Rule.choose`; rewards are those of pulls with stand-ins."""
        scores = -self._known().along * self._correction(rewards)
        return Removal(*plan.choose(scores, kept, progress), scores)

    def settle(
        self, plans: Sequence[Plan], rewards: Floats, kept: Bools, start: float, progress: float
    ) -> Generator[None, None, Removal]:
        """Settles every size in turn, from the largest model on: what goes follows what was measured of the whole
        refitted model."""
        if self.allocation is None:
            return self.choose(plans[-1], rewards, kept, start, progress)
        allocation, orders, removed = self.allocation, self.orders(rewards), []
        for plan in plans:
            for _ in allocation.run(plan, orders, kept):
                self.measured = min(self.planned, math.ceil(allocation.passes))
                yield
            kept, gone = plan.choose(allocation.scores, kept)
            removed.append(gone)
            orders = [*orders, allocation.scores]
        self.cost += Cost(forward_tokens=allocation.cost.forward_tokens, seconds=allocation.cost.seconds)
        return Removal(kept, np.concatenate(removed), allocation.scores)

    def orders(self, rewards: Floats) -> list[Floats]:
        """Gives scores, [K] each, whose orders within sites allocations follow: costs in the outputs, corrected by
        pulls and not, and as they are with outputs that move alike with all directions; experts by what they add."""
        known = self._known()
        return [-known.along * self._correction(rewards), -known.along, -known.evenly]

    def memory(self, sizes: Sizes) -> RuleMemory:
        """See `Rule.memory`."""
        preparing, stand_ins = refit_costs.memory(sizes)
        settling, refits = refit.memory(sizes, self.moves)
        pulling = gradients.memory(sizes)
        return RuleMemory(stand_ins, refits, preparing + pulling, pulling, settling)

    def passes(self, extent: Extent) -> float:
        """See `Rule.passes`: effects where pulls are made, costs of removals, and a part of the batches for every set
        that is measured."""
        effects = super().passes(extent) if extent.pulls else 0.0
        costs = 1 + backward_passes(extent.readout) + STATISTICS * extent.moments
        sets = (1 - 1 / APART) * self.moves + LAST_SETS if self.moves else 0.0
        return effects + costs * extent.batches + extent.sizes * sets * extent.held_out

    def held_out_kl(self) -> float | None:
        """See `Rule.held_out_kl`."""
        return self.allocation.after if self.allocation and self.allocation.cost.pulls else None

    def summary(self) -> str:
        """See `Rule.summary`."""
        return self.allocation.summary() if self.allocation and self.allocation.cost.pulls else ""

    def _correction(self, rewards: Floats) -> Floats:
        """Measured over predicted cost of each arm alone, [K], within `LIMIT`."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.nan_to_num(-rewards / self._known().alone, nan=1.0).clip(1 / LIMIT, LIMIT)

    def _known(self) -> RefitCosts:
        assert self.costs is not None, "a rule is prepared before a search"
        return self.costs
