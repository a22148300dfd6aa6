"""LUCB: its bounds by hand, the arms that it pulls, and its promise on arms with known means."""

import numpy as np
import pytest

from hf_mabprune.policies import POLICIES
from hf_mabprune.policies.lucb import LUCB
from tests.policies.rounds import play, top
from tests.seeds import moved


def make(arms: int, **options: object) -> LUCB:
    policy = POLICIES.get("lucb")(arms=arms, **options)
    assert isinstance(policy, LUCB)
    return policy


def test_bounds_and_choice_by_hand() -> None:
    policy = make(4, confidence=0.9)
    policy.begin(top(2, np.ones(4, dtype=bool)), 100)
    assert policy.select(4).tolist() == [0, 1, 2, 3], "every arm is looked at once"
    policy.update(np.arange(4), np.stack([np.array([0.0, 1.0, 2.0, 3.0])] * 2, 1))
    policy.update(np.array([1, 1]), np.full((2, 2), 1.0))
    policy.low, policy.high, policy.frozen = 0.0, 3.0, True
    policy.turn = 2
    lower, upper = policy.bounds()
    radius = np.sqrt(np.log(5 * 4 * 2**4 / (4 * 0.1)) / (2 * np.array([1, 3, 1, 1])))
    np.testing.assert_allclose([lower, upper], [np.arange(4) / 3 - radius, np.arange(4) / 3 + radius])
    assert upper[0] > upper[1], "the arm that was pulled least is the doubtful one among those that stay"
    assert policy.select(2).tolist() == [0, 2], "of those that would go, arm 2 has the lowest lower bound"


def test_it_finds_the_right_set_and_stops() -> None:
    """40 runs, 12 arms in [0, 1], 5 to remove, a gap of 0.3 between the sides."""
    wrong = early = 0
    for run in range(40):
        rng = np.random.default_rng(moved(run))
        means = np.concatenate([rng.uniform(0.7, 0.9, 5), rng.uniform(0.1, 0.4, 7)])
        table = (rng.uniform(size=(12, 2000)) < means[:, None]).astype(float)
        policy = make(12, seed=run)
        seen = play(policy, table, top(5, np.ones(12, dtype=bool)), 12)
        wrong += set(np.argsort(-policy.scores())[:5].tolist()) != set(range(5))
        early += seen.sum() < table.size / 2
    assert wrong <= 2 and early >= 36


def test_a_tolerance_lets_it_stop_earlier() -> None:
    rng = np.random.default_rng(moved(0))
    table = (rng.uniform(size=(10, 3000)) < np.linspace(0.2, 0.8, 10)[:, None]).astype(float)
    exact, coarse = (
        play(make(10, tolerance=tolerance), table, top(5, np.ones(10, dtype=bool)), 4).sum()
        for tolerance in (0.0, 0.2)
    )
    assert coarse < exact


def test_options_are_checked() -> None:
    with pytest.raises(ValueError, match=r"confidence must be in \(0, 1\), got 0"):
        make(3, confidence=0.0)
    with pytest.raises(ValueError, match=r"tolerance must be in \[0, 1\), got 1"):
        make(3, tolerance=1.0)
