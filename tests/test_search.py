"""The feedback loop: budget, pairing, context and nesting, on arms whose effects are known."""

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch

from hf_mabprune.arms import ArmTable
from hf_mabprune.config import SearchConfig, TargetConfig
from hf_mabprune.effects.pulls.cost import Cost
from hf_mabprune.effects.rewards import Observation
from hf_mabprune.policies import POLICIES
from hf_mabprune.search.allocation import Allocation
from hf_mabprune.search.loop import Search, round_budgets
from hf_mabprune.search.result import SearchResult
from hf_mabprune.search.rules.refit import Refit
from hf_mabprune.selection.plan import Plan
from hf_mabprune.selection.target import make_plan
from tests.seeds import moved

ARMS, LAYERS = 40, 2


class KnownArms:
    """Arms with known mean effects; one that has a twin becomes harmful once the twin is gone."""

    def __init__(self, noise: float = 0.0) -> None:
        self.means = -np.arange(ARMS, dtype=float) / ARMS  # arm 0 is the safest
        self.noise = noise
        self.batches = list(range(5))
        self.cost = Cost()
        self.calls: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self.kept = np.ones(ARMS, dtype=bool)
        self.twins = (0, 1)
        self.broken: list[int] = []
        self.arms_a_forward = 1

    def set_context(self, kept: np.ndarray) -> None:
        self.kept = kept.copy()

    def pull(self, arms: np.ndarray, batches: np.ndarray) -> np.ndarray:
        self.calls.append((self.kept.copy(), arms, batches.copy()))
        means = self.means[arms] + self.noise * np.sin(37.0 * arms + 11.0 * batches)
        one, other = self.twins
        means[(arms == other) & ~self.kept[one]] = -10.0
        means[np.isin(batches, self.broken)] = np.nan
        return np.stack([means, means**2], axis=1)

    def observe(self, batch: int, kept: np.ndarray) -> Observation:
        value = torch.tensor([float(-self.means[~kept].sum())])
        return Observation(loss=value, kl=value, correct=value)


def plan(goes: float = 0.25) -> Plan:
    rows = np.arange(ARMS)
    arms = ArmTable(
        kind=np.array(["neuron"] * ARMS),
        layer=rows // (ARMS // LAYERS),
        index=rows % (ARMS // LAYERS),
        start=4 * (rows % (ARMS // LAYERS)),
        stop=4 * (rows % (ARMS // LAYERS)) + 4,
        parameters=np.full(ARMS, 100),
        macs=np.full(ARMS, 1000),
    )
    totals = {"parameters": 10_000, "macs": 100_000}
    return make_plan(arms, TargetConfig(neurons=goes), totals, "per_layer", {"neuron": 1, "head": 1})


def make(policy: str, pulls: KnownArms, max_broken: int = 0, **settings: float) -> Search:
    config = SearchConfig(**{"rounds": 2, "pulls_per_arm": 4, **settings})
    policy_made = POLICIES.get(policy)(arms=ARMS, seed=0)
    return Search(pulls, policy_made, [plan()], config, max_broken=max_broken)  # type: ignore[arg-type]


def search(policy: str, pulls: KnownArms, max_broken: int = 0, **settings: float) -> SearchResult:
    made = make(policy, pulls, max_broken, **settings)
    for _ in made.run():
        pass
    return made.finished()


@pytest.mark.parametrize("policy", POLICIES.names())
def test_every_policy_spends_the_budget_and_no_more(policy: str) -> None:
    pulls = KnownArms()
    result = search(policy, pulls)
    assert sum(len(arms) for _, arms, _ in pulls.calls) == result.pulls.sum()
    left = 4 * ARMS - result.pulls.sum()
    assert 0 <= left <= 2 or (left > 0 and "decided" in result.stopped_because), "rounding may leave a pull or two"
    assert (~result.kept).sum() == ARMS // 4


@pytest.mark.parametrize("policy", ["sweep", "uniform"])
def test_noise_free_rewards_find_the_safest_arms_one_round(policy: str) -> None:
    pulls = KnownArms()
    pulls.twins = (0, 0)
    result = search(policy, pulls, rounds=1, pulls_per_arm=1)
    assert list(np.flatnonzero(~result.kept)) == list(range(10))


def test_later_rounds_see_the_context_of_what_is_removed() -> None:
    in_context, one_shot = search("sweep", KnownArms(), rounds=10, pulls_per_arm=10), search(
        "sweep", KnownArms(), rounds=1, pulls_per_arm=10
    )
    assert not one_shot.kept[0] and not one_shot.kept[1], "one shot takes both twins, since each alone is safe"
    assert not in_context.kept[0] and in_context.kept[1], "once the first is gone, the second is seen to be needed"


def test_the_nth_pull_of_any_arm_in_a_round_uses_the_nth_batch() -> None:
    pulls = KnownArms()
    search("ucb1", pulls, rounds=1)
    seen: dict[int, list[int]] = {}
    for _, arms, batches in pulls.calls:
        for arm, batch in zip(arms, batches, strict=True):
            seen.setdefault(int(arm), []).append(int(batch))
    for order in seen.values():
        assert order == [n % 5 for n in range(len(order))]


def test_removed_arms_are_never_pulled_and_rounds_are_nested() -> None:
    pulls = KnownArms(noise=0.1)
    result = search("thompson", pulls, rounds=4)
    for kept, arms, _ in pulls.calls:
        assert kept[arms].all()
    assert sorted(result.order) == list(range(ARMS))
    gone = result.order[: (~result.kept).sum()]
    assert set(gone) == set(np.flatnonzero(~result.kept))
    assert list(result.removed_round[gone]) == sorted(result.removed_round[gone])
    assert [done.removed for done in result.rounds][-1] == 10


def test_budgets_measure_every_arm_once_before_the_first_removal() -> None:
    budgets = round_budgets(total=2 * ARMS, rounds=8, plan=plan())
    assert budgets[0] == ARMS and sum(budgets) <= 2 * ARMS
    assert budgets[1:] == sorted(budgets[1:], reverse=True), "fewer arms are left, so fewer pulls are made"


@pytest.mark.filterwarnings("ignore:the loss of calibration batch")
def test_batches_without_a_finite_loss_give_way_to_the_next_good_one() -> None:
    pulls, good = KnownArms(), KnownArms()
    pulls.broken = [1, 2]
    result = search("uniform", pulls, max_broken=2)
    assert sorted(result.broken) == [1, 2]
    assert np.array_equal(result.order, search("uniform", good).order)
    used = [batch for _, _, batches in pulls.calls for batch in batches]
    assert used.count(1) == ARMS // 4, "a broken batch is tried once, by the arms of one step"
    assert used.count(3) > used.count(4)


def test_too_many_broken_batches_end_the_search() -> None:
    pulls = KnownArms()
    pulls.broken = [0, 3]
    message = "batch 3 is not finite, and 1 were skipped already, at most 1 may be"
    with pytest.warns(UserWarning, match="batch 0 is not finite"), pytest.raises(ValueError, match=message):
        search("sweep", pulls, max_broken=1)


@pytest.mark.parametrize("policy", POLICIES.names())
@pytest.mark.parametrize("steps", [1, 5, 9, 14])
def test_a_search_goes_on_from_its_state_as_if_nothing_had_been(policy: str, steps: int) -> None:
    whole = search(policy, KnownArms(noise=0.3), rounds=3)
    first, second = (make(policy, KnownArms(noise=0.3), rounds=3) for _ in range(2))
    for _, _ in zip(range(steps), first.run(), strict=False):
        pass
    second.load_state_dict(first.state_dict())
    for _ in second.run():
        pass
    again = second.finished()
    assert np.array_equal(again.order, whole.order) and np.array_equal(again.scores, whole.scores)
    assert np.array_equal(again.pulls, whole.pulls) and again.rounds == whole.rounds


class Known(Allocation):
    """An allocation that knows the best scores of each size, and measures nothing."""

    def __init__(self, scores: dict[int, np.ndarray]) -> None:
        self.by_size, self.cost, self.starts = scores, Cost(pulls=1, forward_tokens=7, seconds=1.0), []

    def run(self, plan: Plan, candidates: Sequence[np.ndarray], start: np.ndarray) -> Iterator[None]:
        self.scores = self.by_size[int(plan.budgets[0].amount)]
        self.starts.append((len(candidates), int(start.sum())))
        yield

    def summary(self) -> str:
        return "known"


def test_every_size_gets_its_own_allocation_and_larger_sizes_hold_smaller_ones() -> None:
    rng = np.random.default_rng(moved(0))
    small, large = plan(0.25), plan(0.5)
    amounts = [int(each.budgets[0].amount) for each in (small, large)]
    known = Known({amount: rng.normal(size=ARMS) for amount in amounts})
    rule, everything = Refit(), np.ones(ARMS, dtype=bool)
    rule.allocation = known
    rule.candidates = lambda rewards: [rewards]  # type: ignore[method-assign]
    removal, steps = None, 0
    settling = rule.settle([small, large], np.zeros(ARMS), everything, 0.0, 1.0)
    try:
        while True:
            next(settling)
            steps += 1
    except StopIteration as end:
        removal = end.value

    first, _ = small.choose(known.by_size[amounts[0]], everything)
    second, _ = large.choose(known.by_size[amounts[1]], first)
    assert np.array_equal(removal.kept, second) and known.starts == [(1, ARMS), (2, int(first.sum()))]
    assert set(removal.removed[: (~first).sum()]) == set(np.flatnonzero(~first)), "the smaller size comes first"
    assert set(removal.removed) == set(np.flatnonzero(~second))
    assert steps == 2 and rule.summary() == "known"
    assert rule.cost == Cost(0, 7, 0, 1.0), "sets that were measured are no pulls of arms"
