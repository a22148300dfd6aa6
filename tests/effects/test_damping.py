"""The ridge that makes second moments invertible: no more than it takes, and the first where that will do."""

import numpy as np
import pytest
import torch

from hf_mabprune.compensation.base import ridge
from hf_mabprune.effects.damping import damped
from hf_mabprune.effects.obs import increases


def test_the_first_ridge_is_taken_where_it_will_do() -> None:
    tried: list[float] = []
    assert damped(lambda strength: tried.append(strength) or "solved", 0.01, 1.0) == "solved"
    assert tried == [0.01]


def test_ridges_begin_at_the_rounding_of_the_largest_entry() -> None:
    tried: list[float] = []

    def solve(strength: float) -> float | None:
        tried.append(strength)
        return strength if strength > 1e-12 else None

    assert 1e-12 < damped(solve, 1e-300, 1.0) <= 1e-11
    assert len(tried) < 8


@pytest.mark.parametrize("largest", [1.0, np.inf, np.nan])
def test_moments_that_cannot_be_inverted_are_refused(largest: float) -> None:
    with pytest.raises(ValueError, match="cannot be inverted: look for broken weights"):
        damped(lambda strength: None, 0.01, largest)


def noise(size: int) -> np.ndarray:
    """A covariance of which nothing is left but rounding: indefinite, its trace negative."""
    values = np.random.default_rng(0).normal(size=(size, size)) * 1e-17
    return (values + values.T) / 2 - 1e-17 * np.eye(size)


def test_obs_takes_a_covariance_that_is_all_rounding() -> None:
    scores = increases(np.ones((3, 8)), noise(8), size=2, blocks=4, damping=0.01)
    assert ((scores > 0) & (scores < 1e-12)).all()


def test_a_refit_on_moments_that_are_all_rounding_changes_next_to_nothing() -> None:
    found = ridge(torch.as_tensor(noise(8)), torch.full((3, 8), 1e-20, dtype=torch.float64), 0.01)
    assert found.isfinite().all() and float(found.abs().max()) < 1


def test_dead_columns_beside_living_ones_cost_nothing() -> None:
    second = np.diag([1.0, 0.0, 2.0, 0.0])
    scores = increases(np.ones((2, 4)), second, size=1, blocks=4, damping=1e-6)
    assert scores[[1, 3]] == pytest.approx(0, abs=1e-5) and (scores[[0, 2]] > 1).all()
