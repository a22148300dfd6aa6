"""The only feedback loop: policy <-> pulls, in rounds, within a budget.

Each round pulls arms in the context of everything removed so far, then removes the safest. The i-th pull of any arm in
a round uses the i-th batch of that round, so arms are compared on the same examples.
A search can be stopped after any step, written down with `state_dict` and taken up again: it ends the same.
Symbols: K arms; B examples in a batch.
"""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hf_mabprune.arms import ArmTable
from hf_mabprune.config import SearchConfig
from hf_mabprune.effects.interactions import Interactions
from hf_mabprune.effects.pulls import Pulls
from hf_mabprune.effects.pulls.base import Cost
from hf_mabprune.effects.refit_costs import RefitCosts, Refitted
from hf_mabprune.policies import Policy
from hf_mabprune.selection.plan import Plan

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Round:
    """What one round did: for the log, the report and the figures."""

    number: int
    removed: int  # arms gone after the round
    removed_fraction: float  # of the target
    pulls: int  # so far
    kl: float  # mean over one batch, after the removal
    loss: float
    loss_before: float  # of the dense model on the same batch
    seconds: float  # spent on pulls so far


@dataclass
class SearchResult:
    """Where a search is, or ended.

    Attributes:
        kept: [K], the arms that stay.
        order: The arms removed so far, in their order; of a finished search [K], all arms: the removed, then the kept,
            least harmful first.
        scores: [K], mean reward of each arm in the context it was last pulled in.
        pulls: [K], number of pulls of each arm.
        removed_round: [K], 1-based; 0 for arms that stay.
        broken: Calibration batches that were skipped because their loss is not finite.
    """

    kept: Bools
    order: Ints
    scores: Floats
    pulls: Ints
    removed_round: Ints
    rounds: list[Round] = field(default_factory=list)
    broken: list[int] = field(default_factory=list)
    stopped_because: str = "target reached"

    @classmethod
    def of_all(cls, arms: int) -> "SearchResult":
        """Where a search of so many arms begins."""
        return cls(
            kept=np.ones(arms, dtype=bool),
            order=np.empty(0, dtype=np.int64),
            scores=np.full(arms, -np.inf),
            pulls=np.zeros(arms, dtype=np.int64),
            removed_round=np.zeros(arms, dtype=np.int64),
        )

    @classmethod
    def from_table(cls, table: pd.DataFrame, arms: ArmTable, rounds: list[dict[str, Any]]) -> "SearchResult":
        """Reads `table` back.

        Raises:
            ValueError: If the table is of other arms.
        """
        names = ["kind", "layer", "start", "stop"]
        if not table[names].equals(arms.to_frame()[names].astype(table[names].dtypes)):
            raise ValueError(
                f"the finished search had {len(table):,} arms that do not fit this model's {len(arms):,}: keep its "
                "model, arms and block_size"
            )
        return cls(
            kept=(table["removed_round"] == 0).to_numpy(),
            order=np.argsort(table["order"].to_numpy()),
            scores=table["mean"].to_numpy(dtype=float),
            pulls=table["pulls"].to_numpy(),
            removed_round=table["removed_round"].to_numpy(),
            rounds=[Round(**done) for done in rounds],
        )

    def table(self, arms: ArmTable, kept: Bools) -> pd.DataFrame:
        """One row an arm: what it is, what was found out about it, and whether it stays in the final model."""
        return arms.to_frame().assign(
            pulls=self.pulls,
            mean=self.scores,
            kept=kept,
            removed_round=self.removed_round,
            order=np.argsort(self.order),
        )


class Allocator(Protocol):
    """Settles how much goes from which site, once arms are known: `allocation.Allocation`."""

    scores: Floats
    trials: int
    cost: Cost

    def run(self, plan: Plan, candidates: Sequence[Floats], start: Bools) -> Iterator[None]:
        """From some scores, [K] each, to better ones, in `scores`, to go on from the arms `start`, [K]; yields after
        every measurement."""

    def summary(self) -> str:
        """What it did, in half a sentence."""


class Search:
    """Finds the arms that go.

    Args:
        pulls: Measures arms; its context is moved along.
        policy: Decides which arms to measure.
        plan: Says how many go, and which may.
        config: Rounds and budget.
        max_broken: Calibration batches without a finite loss that are skipped before the search gives up.
        refit_costs: What is known of removals with refits, where the search counts on them; the stand-ins of
            `pulls` are its own then.
        allocation: Has the last word on sites, where there are such costs.
        sizes: Plans of the larger sizes that will be cut from the same order, least removed first; each gets an
            allocation of its own.
    """

    ARRAYS = ("kept", "order", "scores", "pulls", "removed_round")

    def __init__(
        self,
        pulls: Pulls,
        policy: Policy,
        plan: Plan,
        config: SearchConfig,
        max_broken: int = 0,
        refit_costs: RefitCosts | None = None,
        allocation: Allocator | None = None,
        sizes: Sequence[Plan] = (),
    ) -> None:
        arms = len(plan.arms)
        self.pulls, self.policy, self.plan, self.config, self.max_broken = pulls, policy, plan, config, max_broken
        self.result = SearchResult.of_all(arms)
        self.refit_costs, self.allocation, self.sizes = refit_costs, allocation, [*sizes, plan]
        self.estimated = config.interactions or refit_costs is not None
        self.budgets = round_budgets(round(config.pulls_per_arm * arms), config.number_of_rounds, plan, self.estimated)
        self.number = 1  # of the round under way
        self.seen = np.zeros(arms, dtype=np.int64)  # pulls of each arm in this round
        self.interactions: Interactions | None = None  # in the context of this round
        self.decided = 0  # rounds that the policy ended before the budget did
        self.paid_rounds = 0  # rounds whose interactions are in the cost
        self.offset = 0  # a round starts on batches that the earlier ones have not used up

    @property
    def planned(self) -> int:
        """Pulls that the whole search makes."""
        return sum(self.budgets)

    def run(self) -> Iterator[Round | None]:
        """Goes on to the end; yields None after every step of pulls, and what a round did after every round.

        Raises:
            ValueError: If more calibration batches than allowed have no finite loss.
        """
        while self.number <= self.config.number_of_rounds:
            self.pulls.set_context(self.result.kept)
            self._begin_round()
            while self._left() > 0 and self._step():
                yield None
            if self.allocation and isinstance(self.interactions, Refitted):
                yield from self._allocate(self.allocation, self.interactions.candidates(self._rewards()))
            else:
                self._remove(*self._choose(self._rewards(), self.result.kept))
            yield self._end_round()

    def _allocate(self, allocation: Allocator, candidates: list[Floats]) -> Iterator[None]:
        """Every size in turn, from the largest on: what goes follows what was measured of the whole refitted model."""
        result, kept, gone = self.result, self.result.kept, []
        for plan in self.sizes:
            yield from allocation.run(plan, candidates, kept)
            kept, removed = plan.choose(allocation.scores, kept)
            gone.append(removed)
            candidates = [allocation.scores, *candidates]
        self._remove(kept, np.concatenate(gone), allocation.scores)
        self.pulls.cost.forward_tokens += allocation.cost.forward_tokens
        self.pulls.cost.seconds += allocation.cost.seconds
        result.stopped_because += f"; {allocation.summary()}"

    def _remove(self, kept: Bools, removed: Ints, scores: Floats) -> None:
        """Takes down what goes in this round."""
        result = self.result
        result.scores = np.where(result.kept, scores, result.scores)
        result.kept = kept
        result.order = np.concatenate([result.order, removed])
        result.removed_round[removed] = self.number

    def _begin_round(self) -> None:
        """Measures how arms bear on each other, and tells the policy what the round is about."""
        known = None
        if self.estimated:
            paid = replace(self.pulls.cost)
            self.interactions = Interactions(*self.pulls.effects(self.config.label_draws, self.number))
            if self.paid_rounds >= self.number:  # a search that is taken up again has paid already
                self.pulls.cost = paid
            self.paid_rounds = self.number
            if self.refit_costs:
                self.interactions = self.refit_costs.informed(self.interactions)
            known = self.interactions.rewards()
        kept = self.result.kept
        choose = lambda scores: self._choose(scores, kept)[0]  # noqa: E731
        self.policy.begin(choose, len(self.pulls.batches), known, self.budgets[self.number - 1])

    def _choose(self, scores: Floats, kept: Bools) -> tuple[Bools, Ints, Floats]:
        """What stays after this round, what goes, and all scores, by those of single arms."""
        start, progress = (number / self.config.number_of_rounds for number in (self.number - 1, self.number))
        if self.interactions:
            return self.interactions.remove(self.plan, scores, kept, start, progress)
        return *self.plan.choose(scores, kept, progress), scores

    def finished(self) -> SearchResult:
        """The result, with the arms that stay put at the end of the order, least harmful first."""
        stay = np.flatnonzero(self.result.kept)
        order = np.concatenate([self.result.order, stay[np.argsort(-self.result.scores[stay], kind="stable")]])
        rounds = self.config.number_of_rounds
        said = f", {self.decided} of {rounds} rounds decided before their budget was spent" if self.decided else ""
        return replace(self.result, order=order, stopped_because=self.result.stopped_because + said)

    def state_dict(self) -> dict[str, Any]:
        """Everything that `load_state_dict` needs: arrays, numbers, and plain dicts and lists of them."""
        return {
            **{name: getattr(self.result, name).copy() for name in self.ARRAYS},
            "seen": self.seen.copy(),
            "offset": self.offset,
            "number": self.number,
            "paid_rounds": self.paid_rounds,
            "decided": self.decided,
            "rounds": [asdict(done) for done in self.result.rounds],
            "broken": list(self.result.broken),
            "cost": asdict(self.pulls.cost),
            "arms_a_forward": self.pulls.arms_a_forward,
            "policy": self.policy.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a state of a search with the same settings, as if there had been no interruption."""
        for name in self.ARRAYS:
            setattr(self.result, name, np.array(state[name]))
        self.seen = np.array(state["seen"])
        self.offset, self.number = int(state["offset"]), int(state["number"])
        self.paid_rounds, self.decided = int(state["paid_rounds"]), int(state["decided"])
        self.result.rounds = [Round(**done) for done in state["rounds"]]
        self.result.broken = list(state["broken"])
        self.pulls.cost = Cost(**state["cost"])
        self.pulls.arms_a_forward = int(state["arms_a_forward"])
        self.policy.load_state_dict(state["policy"])

    def _rewards(self) -> Floats:
        """[K], by pulls; an arm that was not pulled goes by its estimate where there is one."""
        scores = self.policy.scores()
        return np.where(self.seen > 0, scores, self.interactions.rewards()) if self.interactions else scores

    def _left(self) -> int:
        return self.budgets[self.number - 1] - int(self.seen.sum())

    def _step(self) -> bool:
        """Lets the policy choose arms, and pulls each once; False where it wants no more in this round."""
        step = self.config.arms_per_step or max(1, int(self.result.kept.sum()) // 4)
        arms = self.policy.select(min(step, self._left()))
        if not len(arms):
            self.decided += 1
            return False
        batches, values = self._pull(arms, (self.offset + self.seen[arms]) % len(self.pulls.batches))
        controls = self.interactions.controls(arms, batches) if self.interactions else None
        self.policy.update(arms, values, controls, batches)
        self.seen[arms] += 1
        self.result.pulls[arms] += 1
        return True

    def _pull(self, arms: Ints, batches: Ints) -> tuple[Ints, Floats]:
        """Pulls; batches without a finite loss give way to the next good one, for all arms alike.

        Returns:
            The batches used, [n], and the values, [n, 2].
        """
        values = np.full((len(arms), 2), np.nan)
        while len(todo := np.flatnonzero(~np.isfinite(values).all(axis=1))):
            batches[todo] = [self._usable(batch) for batch in batches[todo]]
            values[todo] = self.pulls.pull(arms[todo], batches[todo])
            for batch in np.unique(batches[~np.isfinite(values).all(axis=1)]):
                self._skip(int(batch))
                values[batches == batch] = np.nan
        return batches, values

    def _usable(self, batch: int) -> int:
        """The batch, or the next one that is not broken."""
        while batch in self.result.broken:
            batch = (batch + 1) % len(self.pulls.batches)
        return batch

    def _skip(self, batch: int) -> None:
        """Leaves a batch out from here on."""
        self.result.broken.append(batch)
        allowed = min(self.max_broken, len(self.pulls.batches) - 1)
        if len(self.result.broken) > allowed:
            raise ValueError(
                f"the loss of calibration batch {batch} is not finite, and {len(self.result.broken) - 1} were skipped "
                f"already, at most {allowed} may be (task.max_broken_batches): look for broken examples, or use dtype "
                "float32"
            )
        warnings.warn(f"the loss of calibration batch {batch} is not finite; it is skipped", stacklevel=2)

    def _end_round(self) -> Round:
        """Takes down what the round did, and makes the next one ready."""
        result, rounds = self.result, self.config.number_of_rounds
        result.rounds.append(self._look())
        self.number += 1
        self.offset = int(result.pulls.max(initial=0))
        self.seen = np.zeros_like(self.seen)
        if self.number <= rounds:
            self.policy.new_context(result.kept)
        return result.rounds[-1]

    def _look(self) -> Round:
        """Loss and KL of what is left, on one batch."""
        result, number = self.result, self.number
        batch = self._usable(number % len(self.pulls.batches))
        now = self.pulls.observe(batch, result.kept)
        before = self.pulls.observe(batch, np.ones_like(result.kept))
        return Round(
            number=number,
            removed=int((~result.kept).sum()),
            removed_fraction=number / self.config.number_of_rounds,
            pulls=int(result.pulls.sum()),
            kl=float(now.kl.mean()),
            loss=float(now.loss.mean()),
            loss_before=float(before.loss.mean()),
            seconds=self.pulls.cost.seconds,
        )


def round_budgets(total: int, rounds: int, plan: Plan, estimated: bool = False) -> list[int]:
    """Splits a budget of pulls over rounds in proportion to the arms that are left in each.

    The first round gets at least one pull an arm where the budget allows, so that nothing goes unmeasured; not where
    all arms are `estimated` anyway.
    """
    arms = len(plan.arms)
    removed = sum(
        len(budget.candidates) * budget.amount / budget.cost[budget.candidates].sum() for budget in plan.budgets
    )
    left = arms - removed * np.arange(rounds) / rounds
    first = total if rounds == 1 else max(int(total * left[0] / left.sum()), 0 if estimated else min(arms, total))
    rest = left[1:] / max(left[1:].sum(), 1.0)
    return [first, *(int(share) for share in (total - first) * rest)]
