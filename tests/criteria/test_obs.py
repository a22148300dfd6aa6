"""Removals against least squares solved from scratch."""

import numpy as np
import pytest

from hf_mabprune.criteria import CRITERIA
from hf_mabprune.effects import obs
from hf_mabprune.effects.obs import remove_blocks
from tests.criteria.by_hand import case, columns, error_without, greedy, inputs_of, weight
from tests.seeds import moved


def layer(size: int, blocks: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, float]:
    """Weight [5, C], correlated inputs [60, C], ridge."""
    rng = np.random.default_rng(moved(seed))
    mixing = rng.normal(size=(size * blocks, size * blocks)) * rng.exponential(size=(size * blocks, 1))
    return rng.normal(size=(5, size * blocks)), rng.normal(size=(60, size * blocks)) @ mixing + 0.5, 0.3


@pytest.mark.parametrize(("size", "blocks"), [(1, 9), (3, 5)])
def test_a_sequence_of_removals_is_that_of_least_squares(size: int, blocks: int) -> None:
    weight, rows, ridge = layer(size, blocks)
    hessian = rows.T @ rows / len(rows) + ridge * np.eye(size * blocks)
    order, increases = remove_blocks(weight, hessian, size)
    expected_order, expected = greedy(weight, rows, ridge, size)
    assert order.tolist() == expected_order
    np.testing.assert_allclose(increases, expected, rtol=1e-7)


@pytest.mark.parametrize("size", [1, 4])
def test_updates_that_are_put_off_change_nothing(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """More columns than are put off at a time; along the order found, the whole error is that of least squares."""
    monkeypatch.setattr(obs, "PENDING", 16)
    blocks = 32 // size + 7
    rng = np.random.default_rng(moved(1))
    weight, rows = rng.normal(size=(3, size * blocks)), rng.normal(size=(400, size * blocks))
    rows[:, 1:] += 0.7 * rows[:, :-1]
    order, increases = remove_blocks(weight, rows.T @ rows / 400 + 0.1 * np.eye(size * blocks), size)
    assert sorted(order) == list(range(blocks))
    for count in (1, 16 // size + 3, blocks - 1, blocks):
        gone = [column for block in order[:count] for column in range(block * size, (block + 1) * size)]
        assert increases[:count].sum() == pytest.approx(error_without(weight, rows, 0.1, gone), rel=1e-7)


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("model_type", ["bert", "llama"])
def test_scores_of_a_model_are_the_increases_that_never_fall(model_type: str, relative: bool) -> None:
    statistics = case(model_type, 16)
    scores = CRITERIA.get("obs")(relative=relative).scores(statistics)
    for _, arms in statistics.arms.groups():
        first = int(arms[0])
        rows = np.concatenate(inputs_of(statistics, first))
        size = columns(statistics, first).stop
        ridge = 0.01 * (rows**2).mean()
        order, increases = greedy(weight(statistics, first), rows, ridge, size)
        scale = ((rows @ weight(statistics, first).T) ** 2).sum(1).mean() if relative else 1.0
        np.testing.assert_allclose(scores[arms[order]], np.maximum.accumulate(increases) / scale, rtol=1e-3)


def test_a_smaller_last_block_is_a_block() -> None:
    statistics = case("llama", 20)  # 20, 20 and 8 of 48 neurons
    arms = statistics.arms.groups()[0][1]
    rows = np.concatenate(inputs_of(statistics, 0))
    ridge = 0.01 * (rows**2).mean()
    scores = CRITERIA.get("obs")().scores(statistics)[arms]
    errors = [
        error_without(weight(statistics, 0), rows, ridge, [*range(*span)]) for span in ((0, 20), (20, 40), (40, 48))
    ]
    assert np.argmin(scores) == np.argmin(errors)
    assert scores.min() == pytest.approx(min(errors), rel=1e-3)


def test_columns_that_are_always_zero_go_first_and_cost_nothing() -> None:
    weight, rows, _ = layer(1, 8)
    rows[:, [2, 5]] = 0
    order, increases = remove_blocks(weight, rows.T @ rows / len(rows) + 1e-9 * np.eye(8), 1)
    assert set(order[:2]) == {2, 5}
    assert increases[:2].sum() < 1e-7 < increases[2]
