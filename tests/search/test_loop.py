"""The feedback loop: budget, pairing, context and nesting, on arms whose effects are known."""

import numpy as np
import pytest

from hf_mabprune.config import SearchConfig
from hf_mabprune.policies import POLICIES
from hf_mabprune.search.loop import Search, round_budgets
from hf_mabprune.search.result import SearchResult
from hf_mabprune.search.rules.single import Single
from tests.search.known_arms import ARMS, KnownArms, plan


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
    in_context, one_shot = (
        search("sweep", KnownArms(), rounds=10, pulls_per_arm=10),
        search("sweep", KnownArms(), rounds=1, pulls_per_arm=10),
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
    message = "batch 3 is not finite, and 1 were skipped already, at most 1 may be .*: batch 3 was broken by hand"
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


class Measuring(Single):
    """Removes as `Single` does, after it has measured something twice."""

    def settle(self, plans, rewards, kept, start, progress):  # type: ignore[no-untyped-def]
        yield
        yield
        return self.choose(plans[-1], rewards, kept, start, progress)


@pytest.mark.parametrize("policy", ["race", "lucb", "sweep"])
def test_a_search_that_is_stopped_while_its_rule_measures_makes_no_more_pulls(policy: str) -> None:
    whole, first, second = (make(policy, KnownArms(noise=0.3), rounds=2, pulls_per_arm=30) for _ in range(3))
    for each in (whole, first, second):
        each.rule = Measuring()
    for _ in first.run():
        if first.settling:
            break
    second.load_state_dict(first.state_dict())
    for each in (whole, second):
        for _ in each.run():
            pass
    assert second.finished().stopped_because == whole.finished().stopped_because
    assert np.array_equal(second.finished().order, whole.finished().order)
    assert np.array_equal(second.finished().pulls, whole.finished().pulls)
