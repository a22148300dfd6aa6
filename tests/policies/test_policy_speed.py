"""A policy must cost nothing beside the forward passes: every neuron of a large model is an arm.

`pytest -m slow --log-cli-level=INFO` prints the times.
"""

import logging
import time

import numpy as np
import pytest

from hf_mabprune.policies import POLICIES
from tests.seeds import moved


@pytest.mark.slow
@pytest.mark.parametrize("name", POLICIES.names())
def test_a_round_of_1000_among_100_000_arms_takes_less_than_50_ms_of_processor_time(name: str) -> None:
    policy = POLICIES.get(name)(arms=100_000)
    rng = np.random.default_rng(moved(0))
    seconds = []
    for _ in range(60):
        rewards = rng.normal(size=1000)
        start = time.process_time()
        arms = policy.select(1000)
        policy.update(arms, np.stack([rewards, rewards**2], axis=1)[: len(arms)])
        seconds.append(time.process_time() - start)
    median_ms = 1e3 * float(np.median(seconds))
    logging.info("%s: %.1f ms", name, median_ms)
    assert median_ms < 50
