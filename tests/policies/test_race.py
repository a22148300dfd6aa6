"""Race on arms with known means: what it promises, and what it saves."""

import numpy as np
import pytest

from hf_mabprune.policies import POLICIES
from hf_mabprune.policies.base import Policy
from tests.policies.rounds import play, top
from tests.seeds import moved


def race(table: np.ndarray, number: int, k: int, controls: np.ndarray | None = None, **options: object) -> Policy:
    """Runs one round on a table of values, [K, batches], until it stops."""
    policy = POLICIES.get("race")(arms=len(table), **options)
    play(policy, table, top(number, np.ones(len(table), dtype=bool)), k, controls)
    return policy


def test_it_finds_the_right_set_before_the_sweep_is_over() -> None:
    """80 runs, 20 arms, 400 batches, 8 to remove, a gap of 0.2 between the sides."""
    rng = np.random.default_rng(moved(0))
    wrong, early = 0, 0
    for _ in range(80):
        means = np.concatenate([rng.uniform(0.6, 0.8, 8), rng.uniform(0.1, 0.4, 12)])
        table = rng.beta(10 * means[:, None], 10 * (1 - means[:, None]), size=(20, 400))
        policy = race(table, 8, 20, lowest=0.0, highest=1.0)
        gone = np.argsort(-policy.scores())[:8]
        wrong += set(gone.tolist()) != set(range(8))
        early += policy.seen.sum() < table.size
    assert wrong <= 0.05 * 80
    assert early >= 0.9 * 80


def test_a_close_race_ends_with_the_exact_means() -> None:
    rng = np.random.default_rng(moved(1))
    table = rng.uniform(size=(6, 30))
    policy = race(table, 3, 6)
    contested = policy.seen >= 30
    np.testing.assert_allclose(policy.means()[contested], table.mean(1)[contested])
    assert contested.sum() >= 2


def test_controls_with_known_means_save_pulls() -> None:
    rng = np.random.default_rng(moved(2))
    means = np.concatenate([np.linspace(0.3, 0.4, 10), np.linspace(0.6, 0.7, 10)])
    controls = means[:, None] + rng.normal(0, 0.2, size=(20, 200))
    table = controls + rng.normal(0, 0.01, size=controls.shape)
    plain, helped = race(table, 10, 5), race(table, 10, 5, controls)
    assert helped.seen.sum() < 0.5 * plain.seen.sum()
    assert set(np.argsort(-helped.scores())[:10]) == set(np.argsort(-table.mean(1))[:10])


def test_options_are_checked() -> None:
    with pytest.raises(ValueError, match=r"confidence must be in \(0, 1\), got 1"):
        POLICIES.get("race")(arms=3, confidence=1.0)
    with pytest.raises(ValueError, match="lowest and highest go together"):
        POLICIES.get("race")(arms=3, lowest=0.5)
