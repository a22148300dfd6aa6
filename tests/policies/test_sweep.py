"""Exhaustive sweep."""

import numpy as np

from hf_mabprune.policies.sweep import Sweep


def test_passes_go_over_all_arms_in_the_same_order() -> None:
    policy = Sweep(arms=5)
    assert [policy.select(2).tolist() for _ in range(5)] == [[0, 1], [2, 3], [4, 0], [1, 2], [3, 4]]


def test_every_seed_sweeps_alike() -> None:
    assert Sweep(arms=5, seed=1).select(3).tolist() == Sweep(arms=5, seed=2).select(3).tolist() == [0, 1, 2]


def test_a_new_context_goes_on_with_the_pass_over_what_is_left() -> None:
    policy = Sweep(arms=6)
    assert policy.select(3).tolist() == [0, 1, 2]
    policy.new_context(np.array([True, False, True, False, True, True]))
    assert [policy.select(3).tolist() for _ in range(2)] == [[4, 5, 0], [2, 4, 5]]
