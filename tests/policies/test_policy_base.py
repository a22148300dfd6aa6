"""The statistics and the map to [0, 1] that all rules share, in numbers worked out by hand."""

import numpy as np
import pytest

from hf_mabprune.policies.base import MAP_ARMS
from hf_mabprune.policies.uniform import Uniform


def test_map_runs_from_the_5th_to_the_95th_percentile(pull) -> None:
    policy = Uniform(arms=21)
    pull(policy, range(21), np.arange(21.0))
    # 21 sorted rewards 0, 1, ..., 20: the 5th percentile is 0.05 * 20 = 1, the 95th 0.95 * 20 = 19.
    assert (policy.low, policy.high) == pytest.approx((1.0, 19.0))
    assert policy.unit(np.array([-5.0, 1.0, 10.0, 14.5, 20.0])) == pytest.approx([0.0, 0.0, 0.5, 0.75, 1.0])


def test_map_is_provisional_until_every_arm_was_seen_then_frozen(pull) -> None:
    policy = Uniform(arms=3)
    pull(policy, [0], [4.0])
    assert policy.unit(np.array([4.0, 9.0])).tolist() == [0.5, 0.5]  # one reward has no range
    pull(policy, [1, 1], [5.0, 100.0])
    assert not policy.frozen
    assert (policy.low, policy.high) == pytest.approx((4.05, 4.95))  # 4 and 5; only an arm's first reward counts
    pull(policy, [2], [6.0])
    assert policy.frozen
    assert (policy.low, policy.high) == pytest.approx((4.1, 5.9))
    pull(policy, [0, 1, 2], [-50.0, 50.0, 500.0])
    assert (policy.low, policy.high) == pytest.approx((4.1, 5.9))


def test_map_of_many_arms_freezes_on_a_sample_of_them(pull) -> None:
    policy = Uniform(arms=1000)
    pull(policy, range(MAP_ARMS - 1), np.linspace(0, 1, MAP_ARMS - 1))
    assert not policy.frozen
    pull(policy, [999], [0.5])
    assert policy.frozen


def test_map_is_made_again_in_a_new_context(pull) -> None:
    policy = Uniform(arms=3)
    pull(policy, [0, 1, 2], [0.0, 10.0, 20.0])
    policy.new_context(np.array([True, True, False]))
    assert (policy.low, policy.high) == pytest.approx((1.0, 19.0))  # stands until there is something to replace it
    pull(policy, [0, 1], [100.0, 200.0])
    assert policy.frozen  # both living arms seen
    assert (policy.low, policy.high) == pytest.approx((105.0, 195.0))


def test_memory_weighs_old_rewards_against_new_ones(pull) -> None:
    policy = Uniform(arms=2, memory=0.25)
    pull(policy, [0, 0, 0, 0, 1], [1.0, 1.0, 1.0, 1.0, 7.0])
    policy.new_context(np.array([True, False]))
    pull(policy, [0], [3.0])
    # Four pulls of 1 count as one pull of 1: (1 + 3) / 2.
    assert policy.pulls.tolist() == [2.0, 1.0]
    assert policy.scores().tolist() == [2.0, 7.0]


def test_arms_without_pulls_count_as_average_ones(pull) -> None:
    policy = Uniform(arms=4)
    assert policy.means().tolist() == [0.0, 0.0, 0.0, 0.0]
    pull(policy, [0, 0, 0, 1], [2.0, 2.0, 2.0, 6.0])
    assert policy.means().tolist() == [2.0, 6.0, 4.0, 4.0]  # the average of arms, not of pulls
    policy.new_context(np.array([False, True, True, True]))
    assert policy.means().tolist() == [2.0, 6.0, 6.0, 6.0]  # of living arms


def test_ties_are_broken_evenly() -> None:
    policy = Uniform(arms=5, seed=0)
    index = np.array([1.0, 2.0, 1.0, 0.0, 1.0])
    chosen = np.array([policy.largest(index, 2) for _ in range(3000)])
    assert (chosen == 1).any(axis=1).all()
    partners = np.bincount(chosen[chosen != 1], minlength=5) / 3000
    assert partners == pytest.approx([1 / 3, 0, 1 / 3, 0, 1 / 3], abs=0.03)


def test_drawing_without_replacement_has_the_probabilities_of_successive_draws() -> None:
    policy = Uniform(arms=3, seed=0)
    p = np.array([0.6, 0.3, 0.1])
    pairs = [tuple(policy.draw(np.log(p), 2)) for _ in range(5000)]
    # P{0, 1} = 0.6 * 0.3 / 0.4 + 0.3 * 0.6 / 0.7 = 0.45 + 0.25714
    # P{0, 2} = 0.6 * 0.1 / 0.4 + 0.1 * 0.6 / 0.9 = 0.15 + 0.06667
    # P{1, 2} = 0.3 * 0.1 / 0.7 + 0.1 * 0.3 / 0.9 = 0.04286 + 0.03333
    assert pairs.count((0, 1)) / 5000 == pytest.approx(0.70714, abs=0.02)
    assert pairs.count((0, 2)) / 5000 == pytest.approx(0.21667, abs=0.02)
    assert pairs.count((1, 2)) / 5000 == pytest.approx(0.07619, abs=0.02)
