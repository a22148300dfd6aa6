"""Rewards on numbers worked out by hand."""

import pytest
import torch

from hf_mabprune.effects.rewards import QUANTITIES, REWARDS, Observation, Reward, check_reward


def observation(losses: list[float], divergences: list[float], correct: list[float]) -> Observation:
    return Observation(*(torch.tensor(values, dtype=torch.float64) for values in (losses, divergences, correct)))


def reward(name: str) -> Reward:
    return REWARDS.get(name)()


ORIGINAL = observation([1.0, 2.0, 0.5], [0.0, 0.0, 0.0], [1.0, 0.0, 1.0])
CONTEXT = observation([1.5, 1.0, 0.5], [0.25, 0.5, 0.0], [1.0, 1.0, 0.5])
PULLED = observation([1.25, 3.0, 0.75], [0.75, 0.25, 0.0], [0.0, 1.0, 0.75])


def test_loss_is_its_fall() -> None:
    assert reward("loss")(ORIGINAL, CONTEXT, PULLED).tolist() == [0.25, -2.0, -0.25]


def test_kl_is_how_much_nearer_the_output_comes() -> None:
    assert reward("kl")(ORIGINAL, CONTEXT, PULLED).tolist() == [-0.5, 0.25, 0.0]


def test_squared_compares_with_the_dense_model() -> None:
    # (1.5 - 1)^2 - (1.25 - 1)^2, (1 - 2)^2 - (3 - 2)^2, (0.5 - 0.5)^2 - (0.75 - 0.5)^2
    assert reward("squared")(ORIGINAL, CONTEXT, PULLED).tolist() == [0.1875, 0.0, -0.0625]


def test_accuracy_is_its_rise() -> None:
    assert reward("accuracy")(ORIGINAL, CONTEXT, PULLED).tolist() == [-1.0, 0.0, 0.25]


@pytest.mark.parametrize("name", REWARDS.names())
def test_harmless_removals_score_higher_than_harmful_ones(name: str) -> None:
    harmful = observation([4.0, 4.0, 4.0], [3.0, 3.0, 3.0], [0.0, 0.0, 0.0])
    safe = reward(name)(ORIGINAL, ORIGINAL, ORIGINAL)
    assert safe.tolist() == [0.0, 0.0, 0.0]
    assert reward(name)(ORIGINAL, ORIGINAL, harmful).mean() < 0


@pytest.mark.parametrize("name", REWARDS.names())
def test_rewards_read_only_what_they_say_they_need(name: str) -> None:
    assert set(reward(name).needs) <= set(QUANTITIES)
    nothing = torch.full((3,), torch.nan, dtype=torch.float64)

    def seen(full: Observation) -> Observation:
        return Observation(
            **{
                quantity: getattr(full, quantity) if quantity in reward(name).needs else nothing
                for quantity in QUANTITIES
            }
        )

    full = reward(name)(ORIGINAL, CONTEXT, PULLED)
    assert torch.equal(reward(name)(seen(ORIGINAL), seen(CONTEXT), seen(PULLED)), full)


def test_a_reward_that_is_none_or_compares_classes_is_refused() -> None:
    check_reward("kl", predicts_classes=False)
    check_reward("accuracy")
    with pytest.raises(
        ValueError, match=r"unknown reward 'kll'\. Did you mean 'kl'\? Known: accuracy, kl, loss, squared"
    ):
        check_reward("kll")
    with pytest.raises(
        ValueError, match=r"accuracy needs classes, this task predicts numbers; use one of kl, loss, sq"
    ):
        check_reward("accuracy", predicts_classes=False)
