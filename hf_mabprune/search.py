"""The only feedback loop: policy <-> pulls, in rounds, within a budget.

Each round pulls arms in the context of everything removed so far, then removes the safest. The i-th pull of any arm in
a round uses the i-th batch of that round, so arms are compared on the same examples.
Symbols: K arms; B examples in a batch.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hf_mabprune.arms import ArmTable
from hf_mabprune.config import SearchConfig
from hf_mabprune.policies import Policy
from hf_mabprune.pulls import Pulls
from hf_mabprune.selection import Plan

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
    loss_before: float  # of the unpruned model on the same batch
    seconds: float  # spent on pulls so far


class Watcher(Protocol):
    """Is told how a search goes."""

    def on_step(self, pulls: int, planned: int) -> None:
        """After every batch of pulls."""

    def on_round(self, done: Round) -> None:
        """After every round."""


@dataclass
class SearchResult:
    """Where a search ended.

    Attributes:
        kept: [K], the arms that stay.
        order: [K], all arms: the removed in their order, then the kept, least harmful first.
        scores: [K], mean reward of each arm in the context it was last pulled in.
        pulls: [K], number of pulls of each arm.
        removed_round: [K], 1-based; 0 for arms that stay.
    """

    kept: Bools
    order: Ints
    scores: Floats
    pulls: Ints
    removed_round: Ints
    rounds: list[Round] = field(default_factory=list)
    stopped_because: str = "target reached"

    def table(self, arms: ArmTable, kept: Bools) -> pd.DataFrame:
        """One row an arm: what it is, what was found out about it, and whether it stays in the final model."""
        return arms.to_frame().assign(
            pulls=self.pulls,
            mean=self.scores,
            kept=kept,
            removed_round=self.removed_round,
            order=np.argsort(self.order),
        )


def run_search(
    pulls: Pulls, policy: Policy, plan: Plan, config: SearchConfig, watcher: Watcher | None = None
) -> SearchResult:
    """Finds the arms that go.

    Args:
        pulls: Measures arms; its context is moved along.
        policy: Decides which arms to measure.
        plan: Says how many go, and which may.
        config: Rounds and budget.
        watcher: Is told about every step and round.
    """
    arms = len(plan.arms)
    result = SearchResult(
        kept=np.ones(arms, dtype=bool),
        order=np.empty(0, dtype=np.int64),
        scores=np.full(arms, -np.inf),
        pulls=np.zeros(arms, dtype=np.int64),
        removed_round=np.zeros(arms, dtype=np.int64),
    )
    budgets = round_budgets(round(config.pulls_per_arm * arms), config.rounds, plan)
    for number, budget in enumerate(budgets, start=1):
        pulls.set_context(result.kept)
        if number > 1:
            policy.new_context(result.kept)
        for _ in _pull_round(pulls, policy, config, result, budget):
            if watcher:
                watcher.on_step(int(result.pulls.sum()), sum(budgets))
        _remove(policy.scores(), plan, number, config.rounds, result)
        result.rounds.append(_look(pulls, number, config.rounds, result))
        if watcher:
            watcher.on_round(result.rounds[-1])
    stay = np.flatnonzero(result.kept)
    result.order = np.concatenate([result.order, stay[np.argsort(-result.scores[stay], kind="stable")]])
    return result


def round_budgets(total: int, rounds: int, plan: Plan) -> list[int]:
    """Splits a budget of pulls over rounds in proportion to the arms that are left in each.

    The first round gets at least one pull an arm where the budget allows, so that nothing goes unmeasured.
    """
    arms = len(plan.arms)
    removed = sum(
        len(budget.candidates) * budget.amount / budget.cost[budget.candidates].sum() for budget in plan.budgets
    )
    left = arms - removed * np.arange(rounds) / rounds
    first = total if rounds == 1 else max(int(total * left[0] / left.sum()), min(arms, total))
    rest = left[1:] / max(left[1:].sum(), 1.0)
    return [first, *(int(share) for share in (total - first) * rest)]


def _pull_round(
    pulls: Pulls, policy: Policy, config: SearchConfig, result: SearchResult, budget: int
) -> Iterator[None]:
    """Spends the budget of one round, a step at a time."""
    offset = int(result.pulls.max(initial=0))  # a round starts on batches that the earlier ones have not used up
    seen = np.zeros(len(result.kept), dtype=np.int64)
    step = config.arms_per_step or max(1, int(result.kept.sum()) // 4)
    while budget > 0:
        arms = policy.select(min(step, budget))
        batches = (offset + seen[arms]) % len(pulls.batches)
        policy.update(arms, pulls.pull(arms, batches), batches=batches)
        seen[arms] += 1
        result.pulls[arms] += 1
        budget -= len(arms)
        yield


def _remove(scores: Floats, plan: Plan, number: int, rounds: int, result: SearchResult) -> None:
    """Ends a round: the safest arms go, as many as the plan asks for by now."""
    result.scores = np.where(result.kept, scores, result.scores)
    result.kept, removed = plan.choose(scores, result.kept, number / rounds)
    result.order = np.concatenate([result.order, removed])
    result.removed_round[removed] = number


def _look(pulls: Pulls, number: int, rounds: int, result: SearchResult) -> Round:
    """Loss and KL of what is left, on one batch."""
    batch = number % len(pulls.batches)
    now, before = pulls.observe(batch, result.kept), pulls.observe(batch, np.ones_like(result.kept))
    return Round(
        number=number,
        removed=int((~result.kept).sum()),
        removed_fraction=number / rounds,
        pulls=int(result.pulls.sum()),
        kl=float(now.kl.mean()),
        loss=float(now.loss.mean()),
        loss_before=float(before.loss.mean()),
        seconds=pulls.cost.seconds,
    )
