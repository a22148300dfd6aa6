"""What every registered policy must do, whatever its rule."""

from pathlib import Path

import numpy as np
import pytest

from hf_mabprune.policies import POLICIES, Policy
from hf_mabprune.registry import check_options
from hf_mabprune.runtime.saved import pack, unpack
from tests.seeds import moved

NAMES = POLICIES.names()
PAPER = {"epsilon_greedy", "softmax", "ucb1", "thompson", "hedge", "exp3"}
REWEIGHTS_BETWEEN_PLAYS = {"exp3"}  # a play changes the probabilities that the next one is weighted by


def build(name: str, arms: int, seed: int = 0, **options: object) -> Policy:
    return POLICIES.get(name)(arms=arms, seed=seed, **options)


def with_moments(rewards: np.ndarray) -> np.ndarray:
    return np.stack([rewards, rewards**2 + 0.1], axis=1)


def run(policy: Policy, table: np.ndarray, k: int) -> list[list[int]]:
    """One round for each row of the reward table [rounds, K]; returns what was selected."""
    selected = []
    for rewards in table:
        arms = policy.select(k)
        policy.update(arms, with_moments(rewards[arms]))
        selected.append(arms.tolist())
    return selected


@pytest.fixture
def table() -> np.ndarray:
    return np.random.default_rng(moved(1)).normal(size=(12, 30))


@pytest.mark.parametrize("name", NAMES)
def test_same_seed_same_run(name: str, table: np.ndarray) -> None:
    assert run(build(name, 30, seed=3), table, 4) == run(build(name, 30, seed=3), table, 4)


@pytest.mark.parametrize("name", sorted(PAPER | {"uniform"}))
def test_another_seed_another_run(name: str, table: np.ndarray) -> None:
    assert run(build(name, 30, seed=3), table, 4) != run(build(name, 30, seed=4), table, 4)


@pytest.mark.parametrize("name", NAMES)
def test_selects_different_living_arms(name: str, table: np.ndarray) -> None:
    policy = build(name, 30)
    run(policy, table, 5)
    kept = np.ones(30, dtype=bool)
    kept[::3] = False
    policy.new_context(kept)
    for rewards in table:
        arms = policy.select(7)
        assert arms.dtype == np.int64
        assert len(set(arms.tolist())) == len(arms) == 7
        assert kept[arms].all()
        policy.update(arms, with_moments(rewards[arms]))


@pytest.mark.parametrize("name", NAMES)
def test_selects_all_living_arms_when_asked_for_more(name: str) -> None:
    policy = build(name, 5)
    policy.new_context(np.array([True, False, True, True, False]))
    assert sorted(policy.select(99).tolist()) == [0, 2, 3]
    policy.new_context(np.zeros(5, dtype=bool))
    assert len(policy.select(2)) == 0


@pytest.mark.parametrize("name", NAMES)
def test_removed_arms_stay_removed_and_keep_their_score(name: str) -> None:
    policy = build(name, 4, memory=0.5)
    policy.update(np.arange(4), with_moments(np.array([1.0, 2.0, 3.0, 4.0])))
    policy.new_context(np.array([True, True, False, True]))
    policy.new_context(np.ones(4, dtype=bool))
    assert policy.alive.tolist() == [True, True, False, True]
    assert policy.scores().tolist() == [1.0, 2.0, 3.0, 4.0]
    assert policy.pulls.tolist() == [0.25, 0.25, 1.0, 0.25]


@pytest.mark.parametrize("name", NAMES)
def test_without_memory_every_arm_is_ranked_afresh(name: str, table: np.ndarray) -> None:
    policy = build(name, 30, memory=0.0)
    run(policy, table, 30)
    kept = np.arange(30) >= 2
    policy.new_context(kept)
    assert (policy.scores()[kept] == -np.inf).all()
    first = policy.select(3)
    policy.update(first, with_moments(np.array([5.0, 6.0, 7.0])))
    assert policy.scores()[first].tolist() == [5.0, 6.0, 7.0]


@pytest.mark.parametrize("name", NAMES)
def test_scores_are_mean_rewards_and_never_rank_an_arm_without_pulls(name: str) -> None:
    policy = build(name, 4)
    policy.update(np.array([0, 2, 0]), with_moments(np.array([1.0, -9.0, 2.0])))
    assert policy.scores().tolist() == [1.5, -np.inf, -9.0, -np.inf]


@pytest.mark.parametrize("name", NAMES)
def test_cumulative_ranking_adds_up(name: str) -> None:
    policy = build(name, 3, rank_by="cumulative")
    policy.update(np.array([0, 1, 0]), with_moments(np.array([1.0, 1.5, 1.0])))
    assert policy.scores().tolist() == [2.0, 1.5, -np.inf]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("size", "k"), [(30, 4), (400, 130)])  # the larger freezes its map before all arms are seen
def test_saved_state_goes_on_as_if_never_interrupted(name: str, size: int, k: int, tmp_path: Path) -> None:
    table = np.random.default_rng(moved(1)).normal(size=(12, size)) * np.linspace(1, 9, 12)[:, None]
    policy = build(name, size, seed=5)
    run(policy, table[:5], k)
    policy.new_context(np.arange(size) % 7 > 0)
    run(policy, table[:3], k)

    state = policy.state_dict()
    saved = pack(state)
    uninterrupted = run(policy, table, k)

    resumed = build(name, size, seed=99)
    resumed.load_state_dict(unpack(saved, tmp_path))
    assert run(resumed, table, k) == uninterrupted
    assert resumed.scores().tolist() == policy.scores().tolist()


@pytest.mark.parametrize("name", NAMES)
def test_a_state_can_be_gone_back_to(name: str, table: np.ndarray) -> None:
    policy = build(name, 30)
    run(policy, table[:4], 4)
    state = policy.state_dict()
    first = run(policy, table[4:], 4)
    policy.load_state_dict(state)
    assert run(policy, table[4:], 4) == first
    policy.load_state_dict(state)
    assert run(policy, table[4:], 4) == first


@pytest.mark.parametrize("name", NAMES)
def test_a_state_of_another_size_or_kind_is_refused(name: str) -> None:
    state = build(name, 10).state_dict()
    with pytest.raises(ValueError, match=r"alive must be \[12\], got \[10\]"):
        build(name, 12).load_state_dict(state)
    del state["sums"]
    with pytest.raises(ValueError, match=r"a state of \w+ has \["):
        build(name, 10).load_state_dict(state)


@pytest.mark.parametrize("name", NAMES)
def test_finds_the_good_arms_better_than_chance(name: str) -> None:
    """20 good arms among 200, one noise standard deviation above the rest, 5 pulls an arm; chance finds 2 of 20."""
    found = []
    for seed in range(3):
        rng = np.random.default_rng(moved(seed))
        good = np.zeros(200, dtype=bool)
        good[rng.choice(200, 20, replace=False)] = True
        policy = build(name, 200, seed=seed)
        run(policy, good + rng.normal(size=(50, 200)), 20)
        found.append(good[np.argsort(-policy.scores())[:20]].sum())
    assert np.mean(found) >= 8


@pytest.mark.parametrize("name", sorted(set(NAMES) - REWEIGHTS_BETWEEN_PLAYS))
def test_one_call_with_all_pulls_equals_one_call_a_pull(name: str) -> None:
    rng = np.random.default_rng(moved(0))
    arms = np.concatenate([np.arange(12), rng.integers(0, 12, size=20)])
    values = with_moments(rng.normal(size=32))
    at_once, one_by_one = build(name, 12), build(name, 12)
    at_once.update(arms, values)
    for i in range(32):
        one_by_one.update(arms[i : i + 1], values[i : i + 1])
    assert at_once.scores().tolist() == one_by_one.scores().tolist()
    assert [at_once.select(3).tolist() for _ in range(20)] == [one_by_one.select(3).tolist() for _ in range(20)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("arms", "values", "message"),
    [
        ([1], [[np.nan, 0.0]], r"values must be finite, got others for arms \[1\]"),
        ([0, 1], [[0.0, 0.0], [1.0, np.inf]], r"values must be finite, got others for arms \[1\]"),
        ([4], [[0.0, 0.0]], r"arms must be in \[0, 4\), got 4 to 4"),
        ([-1], [[0.0, 0.0]], r"arms must be in \[0, 4\), got -1 to -1"),
        ([3], [[0.0, 0.0]], r"arms \[3\] are already removed"),
        ([0, 1], [[0.0, 0.0]], r"values must be \[n, 2\] for arms \[n\], got \(1, 2\) for \(2,\)"),
        ([0], [0.0], r"values must be \[n, 2\] for arms \[n\], got \(1,\) for \(1,\)"),
    ],
)
def test_wrong_rewards_are_refused_and_leave_no_trace(name: str, arms: list[int], values: list, message: str) -> None:
    policy = build(name, 4)
    policy.new_context(np.array([True, True, True, False]))
    with pytest.raises(ValueError, match=message):
        policy.update(np.array(arms), np.array(values))
    assert policy.pulls.sum() == 0


@pytest.mark.parametrize("name", NAMES)
def test_wrong_calls_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        build(name, 4).select(0)
    with pytest.raises(ValueError, match="arms must be at least 1, got 0"):
        build(name, 0)
    with pytest.raises(ValueError, match=r"kept must be a boolean array \[4\], got int64 \[2\]"):
        build(name, 4).new_context(np.array([0, 2]))
    with pytest.raises(ValueError, match=r"memory must be in \[0, 1\], got 1.5"):
        build(name, 4, memory=1.5)
    with pytest.raises(ValueError, match="rank_by must be 'mean' or 'cumulative', got 'median'"):
        build(name, 4, rank_by="median")


@pytest.mark.parametrize("name", NAMES)
def test_options_are_checked_by_name_and_type(name: str) -> None:
    component = POLICIES.get(name)
    assert check_options("policy", name, component, {"memory": 0.25}) == {"memory": 0.25}
    with pytest.raises(ValueError, match=r"has no option 'memry'. Did you mean 'memory'\?"):
        check_options("policy", name, component, {"memry": 0.5})
    for words in ("much", "0.25"):
        with pytest.raises(ValueError, match=rf"memory: .+, got '{words}'"):
            check_options("policy", name, component, {"memory": words})
    with pytest.raises(ValueError, match="rank_by: Input should be 'mean' or 'cumulative'"):
        check_options("policy", name, component, {"rank_by": "median"})
