"""Rewards on numbers worked out by hand."""

import pytest
import torch

from hf_mabprune.effects.rewards import NEEDS, QUANTITIES, REWARDS, Observation, accuracy, kl, loss, squared


def observation(losses: list[float], divergences: list[float], correct: list[float]) -> Observation:
    return Observation(*(torch.tensor(values, dtype=torch.float64) for values in (losses, divergences, correct)))


ORIGINAL = observation([1.0, 2.0, 0.5], [0.0, 0.0, 0.0], [1.0, 0.0, 1.0])
CONTEXT = observation([1.5, 1.0, 0.5], [0.25, 0.5, 0.0], [1.0, 1.0, 0.5])
PULLED = observation([1.25, 3.0, 0.75], [0.75, 0.25, 0.0], [0.0, 1.0, 0.75])


def test_loss_is_its_fall() -> None:
    assert loss(ORIGINAL, CONTEXT, PULLED).tolist() == [0.25, -2.0, -0.25]


def test_kl_is_how_much_nearer_the_output_comes() -> None:
    assert kl(ORIGINAL, CONTEXT, PULLED).tolist() == [-0.5, 0.25, 0.0]


def test_squared_compares_with_the_dense_model() -> None:
    # (1.5 - 1)^2 - (1.25 - 1)^2, (1 - 2)^2 - (3 - 2)^2, (0.5 - 0.5)^2 - (0.75 - 0.5)^2
    assert squared(ORIGINAL, CONTEXT, PULLED).tolist() == [0.1875, 0.0, -0.0625]


def test_accuracy_is_its_rise() -> None:
    assert accuracy(ORIGINAL, CONTEXT, PULLED).tolist() == [-1.0, 0.0, 0.25]


@pytest.mark.parametrize("name", sorted(REWARDS))
def test_harmless_removals_score_higher_than_harmful_ones(name: str) -> None:
    harmful = observation([4.0, 4.0, 4.0], [3.0, 3.0, 3.0], [0.0, 0.0, 0.0])
    safe = REWARDS[name](ORIGINAL, ORIGINAL, ORIGINAL)
    assert safe.tolist() == [0.0, 0.0, 0.0]
    assert REWARDS[name](ORIGINAL, ORIGINAL, harmful).mean() < 0


@pytest.mark.parametrize("name", sorted(REWARDS))
def test_rewards_read_only_what_they_say_they_need(name: str) -> None:
    assert set(NEEDS[name]) <= set(QUANTITIES)
    nothing = torch.full((3,), torch.nan, dtype=torch.float64)

    def seen(full: Observation) -> Observation:
        return Observation(
            **{quantity: getattr(full, quantity) if quantity in NEEDS[name] else nothing for quantity in QUANTITIES}
        )

    full = REWARDS[name](ORIGINAL, CONTEXT, PULLED)
    assert torch.equal(REWARDS[name](seen(ORIGINAL), seen(CONTEXT), seen(PULLED)), full)
