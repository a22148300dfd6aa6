"""The same rewards given to mabwiser 2.7 (https://github.com/fidelity/mabwiser), an independent bandit library.

What coincides is compared exactly: UCB1's bounds (its `alpha` is our c), softmax probabilities, epsilon-greedy's
means, the parameters of Thompson's Beta posteriors. What differs: mabwiser gives arms without pulls a bound or mean of
0 where ours are tried first (UCB1) or count as average, so every arm is pulled here; its softmax then draws from a
Dirichlet distribution around the probabilities rather than from them; it has no map to [0, 1], no Gaussian Thompson
sampling for rewards without context, no Hedge and no Exp3.
"""

import numpy as np
import pytest
from mabwiser.mab import MAB, LearningPolicy

from hf_mabprune.policies.epsilon_greedy import EpsilonGreedy
from hf_mabprune.policies.softmax import Softmax
from hf_mabprune.policies.thompson import Thompson
from hf_mabprune.policies.ucb1 import UCB1
from tests.seeds import moved

ARMS = 8


@pytest.fixture
def decisions() -> np.ndarray:
    return np.concatenate([np.arange(ARMS), np.random.default_rng(moved(0)).integers(0, ARMS, size=92)])


@pytest.fixture
def rewards() -> np.ndarray:
    return np.random.default_rng(moved(1)).uniform(size=100)


def fitted(rule: LearningPolicy, decisions: np.ndarray, rewards: np.ndarray) -> MAB:
    """mabwiser after the same rewards, in two parts."""
    mab = MAB(list(range(ARMS)), rule, seed=0)
    mab.fit(decisions[:40], rewards[:40])
    mab.partial_fit(decisions[40:], rewards[40:])
    return mab


def in_order(by_arm: dict[int, float]) -> list[float]:
    return [by_arm[arm] for arm in range(ARMS)]


@pytest.mark.parametrize("c", [0.0, 0.25, 1.0, 2.5])
def test_ucb1_bounds_and_choice(c: float, decisions, rewards, pull, unmapped) -> None:
    policy = unmapped(UCB1(arms=ARMS, c=c))
    pull(policy, decisions[:40], rewards[:40])
    pull(policy, decisions[40:], rewards[40:])
    theirs = fitted(LearningPolicy.UCB1(alpha=c), decisions, rewards)
    assert policy.indices() == pytest.approx(in_order(theirs.predict_expectations()), rel=1e-12)
    assert policy.select(1).tolist() == [theirs.predict()]


def test_ucb1_run_of_a_hundred_plays(rewards, pull, unmapped) -> None:
    """Both choose for themselves; the table holds the reward of each arm at each play."""
    table = np.random.default_rng(moved(2)).uniform(size=(100, ARMS)) * np.linspace(0.5, 1.0, ARMS)
    policy = unmapped(UCB1(arms=ARMS))
    theirs = MAB(list(range(ARMS)), LearningPolicy.UCB1(alpha=1.0), seed=0)
    theirs.fit(np.arange(ARMS), table[0])
    pull(policy, range(ARMS), table[0])
    for row in table[1:]:
        arm = theirs.predict()
        assert policy.select(1).tolist() == [arm]
        theirs.partial_fit([arm], [row[arm]])
        pull(policy, [arm], [row[arm]])


@pytest.mark.parametrize("tau", [0.05, 0.5, 3.0])
def test_softmax_probabilities(tau: float, decisions, rewards, pull, unmapped) -> None:
    policy = unmapped(Softmax(arms=ARMS, tau=tau))
    pull(policy, decisions, rewards)
    theirs = fitted(LearningPolicy.Softmax(tau=tau), decisions, rewards)
    assert policy.probabilities() == pytest.approx(in_order(theirs._imp.arm_to_expectation), rel=1e-10)


def test_epsilon_greedy_means_and_choice(decisions, rewards, pull) -> None:
    policy = EpsilonGreedy(arms=ARMS, epsilon=0.0)
    pull(policy, decisions, rewards)
    theirs = fitted(LearningPolicy.EpsilonGreedy(epsilon=0.0), decisions, rewards)
    assert policy.scores() == pytest.approx(in_order(theirs.predict_expectations()), rel=1e-12)
    assert policy.select(1).tolist() == [theirs.predict()]


def test_thompson_beta_parameters(decisions, rewards, pull, unmapped) -> None:
    wins = (rewards > 0.4).astype(int)  # mabwiser takes rewards of 0 and 1 only
    policy = unmapped(Thompson(arms=ARMS, posterior="beta"))
    pull(policy, decisions, wins)
    theirs = fitted(LearningPolicy.ThompsonSampling(), decisions, wins)._imp
    successes, failures = policy.beta()
    assert successes == pytest.approx(in_order(theirs.arm_to_success_count), rel=1e-12)
    assert failures == pytest.approx(in_order(theirs.arm_to_fail_count), rel=1e-12)
