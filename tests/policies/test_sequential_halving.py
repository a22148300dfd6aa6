"""Sequential halving: where its pulls go, worked out by hand, and that they are better spent than evenly."""

import numpy as np

from hf_mabprune.policies import POLICIES
from tests.policies.rounds import play, top
from tests.seeds import moved


def test_pulls_of_each_phase_by_hand() -> None:
    """8 arms without noise, 2 to go, 72 pulls: 3 phases of 24, that is 3 pulls each of 8 arms, 6 of 4, 12 of 2."""
    means = np.array([0.9, 0.7, 0.6, 0.4, 0.3, 0.2, 0.1, 0.0])
    table = np.repeat(means[:, None], 100, axis=1)
    policy = POLICIES.get("sequential_halving")(arms=8)
    seen = play(policy, table, top(2, np.ones(8, dtype=bool)), 8, budget=72)
    assert seen.sum() == 72
    assert seen.tolist()[1:3] == [21, 21], "the two arms next to the boundary are in question to the end"
    assert seen[4:].tolist() == [3, 3, 3, 3], "those that are far from it go first"
    assert set(np.argsort(-policy.scores())[:2]) == {0, 1}


def test_budgets_of_two_kinds_have_a_boundary_each() -> None:
    """Rewards of the second kind are all far above those of the first."""
    means = np.array([0.1, 0.2, 0.3, 0.4, 10.1, 10.2, 10.3, 10.4])
    table = np.repeat(means[:, None], 100, axis=1)

    def choose(scores: np.ndarray) -> np.ndarray:
        kept = np.ones(8, dtype=bool)
        for first in (0, 4):
            kept[first + np.argsort(-scores[first : first + 4], kind="stable")[:2]] = False
        return kept

    policy = POLICIES.get("sequential_halving")(arms=8)
    seen = play(policy, table, choose, 8, budget=72)
    assert min(seen[[1, 2, 5, 6]]) > max(seen[[0, 3, 4, 7]])


def test_it_errs_less_than_equal_shares() -> None:
    """60 runs at equal budget: one arm in two of 32 goes, and the gap at the boundary is a sixth of the noise."""
    wrong = {"sequential_halving": 0, "uniform": 0}
    for run in range(60):
        rng = np.random.default_rng(moved(run))
        means = np.linspace(0, 1, 32)
        table = means[:, None] + rng.normal(0, 0.2, size=(32, 400))
        for name in wrong:
            policy = POLICIES.get(name)(arms=32, seed=run)
            play(policy, table, top(16, np.ones(32, dtype=bool)), 32, budget=32 * 60)
            wrong[name] += len(set(np.argsort(-policy.scores())[:16]) - set(range(16, 32)))
    assert wrong["sequential_halving"] < 0.7 * wrong["uniform"]


def test_a_round_ends_where_all_batches_are_met() -> None:
    table = np.random.default_rng(moved(0)).normal(size=(6, 5))
    policy = POLICIES.get("sequential_halving")(arms=6)
    seen = play(policy, table, top(3, np.ones(6, dtype=bool)), 6, budget=1000)
    assert seen.max() == 5
