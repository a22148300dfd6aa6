"""The only feedback loop: policy <-> pulls, in rounds, within a budget; a rule removes what is safest after a round.

Each round pulls arms in the context of everything removed so far. The i-th pull of any arm in a round uses the i-th
batch of that round, so arms are compared on the same examples. A search can be stopped after any step, written down
with `state_dict` and taken up again: it ends the same.
Symbols: K arms; n pulls of a call.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np

from hf_mabprune.config import SearchConfig
from hf_mabprune.effects.pulls import Pulls
from hf_mabprune.effects.pulls.cost import Cost
from hf_mabprune.policies import Policy
from hf_mabprune.search.consistency import Consistency
from hf_mabprune.search.result import ROUND, Bools, Floats, Ints, Round, SearchResult
from hf_mabprune.search.rules import Rule
from hf_mabprune.search.rules.single import Single
from hf_mabprune.selection.plan import Plan
from hf_mabprune.states import WHOLE, Entry, Items, Part, Record, Text, Values, read_state

COST: Mapping[str, Entry] = {
    "pulls": Values(int, (), 0, WHOLE),
    "forward_tokens": Values(float, (), 0),
    "backward_tokens": Values(float, (), 0),
    "seconds": Values(float, (), 0),
}


class Search:
    """Finds the arms that go.

    Args:
        pulls: Measures arms; its context is moved along.
        policy: Decides which arms to measure.
        plans: Plans of all sizes that will be cut from the order of removal, least removed first; the last one says
            how many arms go, and which may.
        config: Rounds and budget.
        rule: Decides what goes after a round, prepared for the model; the stand-ins of `pulls` are its own. None takes
            `single`.
        max_broken: Calibration batches without a finite loss that are skipped before the search gives up.
    """

    STATE: ClassVar[Mapping[str, Entry]] = {
        "order": Values(int, ("removed",), 0),
        "scores": Values(float, low=-np.inf),
        "pulls": Values(int, low=0, high=WHOLE),
        "seen": Values(int, low=0, high=WHOLE),
        "rounds": Items(Record(Round, ROUND)),
        "settling": Values(bool, ()),
        "paid_rounds": Values(int, (), 0),
        "broken": Items(Values(int, (), 0)),
        "cost": Record(Cost, COST),
        "arms_a_forward": Values(int, (), 1),
        "policy": Part(),
        "said": Text(),
    }

    def __init__(
        self,
        pulls: Pulls,
        policy: Policy,
        plans: Sequence[Plan],
        config: SearchConfig,
        rule: Rule | None = None,
        max_broken: int = 0,
    ) -> None:
        arms = len(plans[-1].arms)
        self.pulls, self.policy, self.plans, self.config, self.max_broken = pulls, policy, plans, config, max_broken
        self.rule = rule or Single()
        self.plan, self.rounds = plans[-1], config.rounds or self.rule.default_rounds
        self.result = SearchResult.of_all(arms)
        total = round((1.0 if config.pulls_per_arm is None else config.pulls_per_arm) * arms)
        self.budgets = round_budgets(total, self.rounds, self.plan, self.rule.estimates)
        self.number = 1  # of the round under way
        self.settling = False  # whether its pulls are made, and the rule removes arms
        self.seen = np.zeros(arms, dtype=np.int64)  # pulls of each arm in this round
        self.known: Floats | None = None  # [K], estimated rewards in this round
        self.paid_rounds = 0  # rounds whose estimates are in the cost
        self.offset = 0  # a round starts on batches that the earlier ones have not used up
        self.said = ""  # by the rule, when the last round was over
        self.pulls.cost += self.rule.cost

    @property
    def planned(self) -> int:
        """Pulls that the whole search makes."""
        return sum(self.budgets)

    @property
    def ended(self) -> bool:
        """Whether all rounds are over."""
        return self.number > self.rounds

    @property
    def allowed_broken(self) -> int:
        """Batches that may be skipped: one must be left."""
        return min(self.max_broken, len(self.pulls.batches) - 1)

    @property
    def decided(self) -> int:
        """Rounds that the policy ended before the budget did."""
        spent = np.diff([done.pulls for done in self.result.rounds], prepend=0)
        return sum(pulls < budget for pulls, budget in zip(spent.tolist(), self.budgets, strict=False))

    def run(self) -> Iterator[Round | None]:
        """Goes on to the end; yields None after every step of pulls, and what a round did after every round.

        Raises:
            ValueError: If more calibration batches than allowed have no finite loss.
        """
        while not self.ended:
            self.pulls.set_context(self.result.kept)
            self._begin_round()
            while not self.settling and self._left() > 0 and self._step():
                yield None
            self.settling = True
            self.pulls.forget()
            yield from self._remove()
            yield self._end_round()

    def _begin_round(self) -> None:
        """Lets the rule measure how arms bear on each other, and tells the policy what the round is about."""
        paid = self.pulls.cost
        self.known = self.rule.begin(self.pulls, self.number)
        if self.paid_rounds >= self.number:  # a search that is taken up again has paid already
            self.pulls.cost = paid
        self.paid_rounds = self.number
        rule, plan, kept, (start, progress) = self.rule, self.plan, self.result.kept, self._progress()

        def choose(scores: Floats) -> Bools:  # without this search, which would never be let go of
            return rule.choose(plan, scores, kept, start, progress).kept

        self.policy.begin(choose, len(self.pulls.batches), self.known, self.budgets[self.number - 1])

    def _progress(self) -> tuple[float, float]:
        """Part of the target that is reached before this round, and after it."""
        return (self.number - 1) / self.rounds, self.number / self.rounds

    def _remove(self) -> Iterator[None]:
        """Lets the rule remove arms, and takes down what goes; yields after every set that the rule measures."""
        result, paid = self.result, self.rule.cost
        removal = yield from self.rule.settle(self.plans, self._rewards(), result.kept, *self._progress())
        self.pulls.cost += self.rule.cost - paid
        result.scores = np.where(result.kept, removal.scores, result.scores)
        result.kept = removal.kept
        result.order = np.concatenate([result.order, removal.removed])
        result.removed_round[removal.removed] = self.number

    def finished(self) -> SearchResult:
        """Gives the result, with the arms that stay put at the end of the order, least harmful first."""
        stay = np.flatnonzero(self.result.kept)
        order = np.concatenate([self.result.order, stay[np.argsort(-self.result.scores[stay], kind="stable")]])
        ending = [self.result.stopped_because]
        if self.said:
            ending.append(f"; {self.said}")
        if self.decided:
            ending.append(f", {self.decided} of {self.rounds} rounds decided before their budget was spent")
        return replace(self.result, order=order, stopped_because="".join(ending))

    def state_dict(self) -> dict[str, Any]:
        """Everything that `load_state_dict` needs: arrays, numbers, and plain dicts and lists of them."""
        result = self.result
        return {
            "order": result.order.copy(),
            "scores": result.scores.copy(),
            "pulls": result.pulls.copy(),
            "seen": self.seen.copy(),
            "rounds": [asdict(done) for done in result.rounds],
            "settling": self.settling,
            "paid_rounds": self.paid_rounds,
            "broken": list(result.broken),
            "cost": asdict(self.pulls.cost),
            "arms_a_forward": self.pulls.arms_a_forward,
            "policy": self.policy.state_dict(),
            "said": self.said,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a state of a search with the same settings, as if there had been no interruption.

        Raises:
            ValueError: If it is none: in its entries, or because no search with these settings comes to it.
        """
        read = read_state("a search", state, self.STATE, {"K": len(self.plan.arms)})
        bounds = self.budgets, len(self.pulls.batches), self.allowed_broken, self.pulls.arms_a_forward
        for wrong in Consistency(self.plan, *bounds).contradictions(read):
            raise ValueError(f"a state of a search contradicts itself: {wrong}")
        self.policy.load_state_dict(read["policy"])
        result = self.result
        result.order, result.scores, result.pulls = read["order"], read["scores"], read["pulls"]
        result.rounds, result.broken = read["rounds"], read["broken"]
        result.removed_round = _removed_rounds(result.order, result.rounds, len(result.pulls))
        result.kept = result.removed_round == 0
        self.number, self.settling = len(result.rounds) + 1, read["settling"]
        self.seen, self.paid_rounds = read["seen"], read["paid_rounds"]
        self.offset = int((result.pulls - self.seen).max())
        self.pulls.cost, self.pulls.arms_a_forward, self.said = read["cost"], read["arms_a_forward"], read["said"]
        if not self.ended:
            self.policy.check_pulls(result.kept, self.seen, result.pulls)

    def _rewards(self) -> Floats:
        """[K], by pulls; an arm that was not pulled goes by its estimate where there is one."""
        scores = self.policy.scores()
        return scores if self.known is None else np.where(self.seen > 0, scores, self.known)

    def _left(self) -> int:
        return self.budgets[self.number - 1] - int(self.seen.sum())

    def _step(self) -> bool:
        """Lets the policy choose arms, and pulls each once; False where it wants no more in this round."""
        step = self.config.arms_per_step or max(1, int(self.result.kept.sum()) // 4)
        arms = self.policy.select(min(step, self._left()))
        if not len(arms):  # the round is decided
            return False
        batches, values = self._pull(arms, (self.offset + self.seen[arms]) % len(self.pulls.batches))
        controls = self.rule.controls(arms, batches)
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
        if len(self.result.broken) > self.allowed_broken:
            raise ValueError(
                f"the loss of calibration batch {batch} is not finite, and {len(self.result.broken) - 1} were skipped "
                f"already, at most {self.allowed_broken} may be (task.max_broken_batches): {self.pulls.cause(batch)}"
            )
        warnings.warn(f"the loss of calibration batch {batch} is not finite; it is skipped", stacklevel=2)

    def _end_round(self) -> Round:
        """Takes down what the round did, and makes the next one ready."""
        result = self.result
        result.rounds.append(self._look())
        self.number, self.settling = self.number + 1, False
        self.offset = int(result.pulls.max(initial=0))
        self.seen = np.zeros_like(self.seen)
        if self.ended:
            self.said = self.rule.summary()
        else:
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
            removed_fraction=number / self.rounds,
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


def _removed_rounds(order: Ints, rounds: Sequence[Round], arms: int) -> Ints:
    """[K], the round that each arm of an order of removal went in; 0 for arms that stay."""
    removed_round = np.zeros(arms, dtype=np.int64)
    for number, (start, end) in enumerate(pairwise([0, *(done.removed for done in rounds)]), start=1):
        removed_round[order[start:end]] = number
    return removed_round
