"""Exchanges against the definition of the objective, and against all selections of a small layer."""

import itertools

import numpy as np
import pytest

from hf_mabprune.criteria import CRITERIA
from hf_mabprune.criteria.fisher_rearranged import exchange
from tests.criteria.by_hand import batch_gradients, case, plan_of
from tests.seeds import moved


def objective(gradients: np.ndarray, removed: np.ndarray) -> float:
    return float((gradients[removed].sum(0) ** 2).sum())


def test_one_exchange_by_hand() -> None:
    """The two smallest vectors point the same way; the third, a little longer, cancels one of them."""
    gradients = np.array([[1.0, 0.0], [1.1, 0.0], [-1.2, 0.0], [0.0, 9.0]])
    kept = exchange(gradients, np.array([False, False, True, True]), np.zeros(2))
    assert np.flatnonzero(~kept).tolist() == [1, 2]
    kept = exchange(gradients, np.array([False, False, True, True]), np.array([0.0, -9.0]))
    assert np.flatnonzero(~kept).tolist() == [1, 3], "beside what is removed anyway"


@pytest.mark.parametrize("seed", range(20))
def test_exchanges_never_raise_the_objective_and_come_near_the_best(seed: int) -> None:
    rng = np.random.default_rng(moved(seed))
    gradients = rng.normal(size=(9, 3)) * rng.exponential(size=(9, 1))
    kept = np.ones(9, dtype=bool)
    kept[np.argsort((gradients**2).sum(1))[:4]] = False
    found = exchange(gradients, kept, np.zeros(3))
    values = sorted(objective(gradients, np.array(some)) for some in itertools.combinations(range(9), 4))
    assert (~found).sum() == 4
    assert objective(gradients, ~found) <= objective(gradients, ~kept) + 1e-12
    assert objective(gradients, ~found) <= values[len(values) // 3]


@pytest.mark.parametrize(
    ("layout", "block"), [("per_layer", 1), ("per_layer", 20), ("per_layer", 4), ("uniform", 1), ("uniform", 4)]
)
@pytest.mark.parametrize("model_type", ["bert", "llama"])
def test_sizes_are_those_of_fisher_and_no_layer_is_worse(model_type: str, layout: str, block: int) -> None:
    statistics = case(model_type, block)
    plan = plan_of(statistics, {"neurons": 0.5, "heads": 0.5}, layout)
    before, _ = CRITERIA.get("fisher")().choose(statistics, plan)
    after, _ = CRITERIA.get("fisher_rearranged")().choose(statistics, plan)
    gradients, gains = batch_gradients(statistics), []
    for _, rows in statistics.arms.groups():
        assert sorted(statistics.arms.units[rows[before[rows]]]) == sorted(statistics.arms.units[rows[after[rows]]])
        worse, better = (objective(gradients, rows[~kept[rows]]) for kept in (before, after))
        assert better <= worse + 1e-15
        gains.append(worse - better)
    assert block == 20 or max(gains) > 0
