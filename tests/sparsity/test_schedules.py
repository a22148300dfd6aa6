"""Schedules: their rates and epochs, and what a run of them does."""

import re
from typing import Any

import pytest
from torch import nn

from hf_mabprune.sparsity import Step, iterative, one_shot, run_schedule
from tests.sparsity.networks import network, trainer


def test_rates_and_epochs_by_hand() -> None:
    assert one_shot(0.8, 40) == [Step(0.8, 40)]
    linear = iterative(0.8, 4, 40)
    assert [step.rate for step in linear] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert [step.epochs for step in linear] == [10, 10, 10, 10]
    geometric = iterative(0.75, 2, 5, spacing="geometric")
    assert [step.rate for step in geometric] == pytest.approx([0.5, 0.75])
    assert [step.epochs for step in geometric] == [3, 2]  # whole epochs stay whole
    assert [step.epochs for step in iterative(0.6, 3, 2)] == [2 / 3] * 3  # no step goes without
    assert [step.epochs for step in iterative(0.8, 4, 40, equal=False)] == [40] * 4
    assert [step.epochs for step in iterative(0.8, 4, 40, retrain="end")] == [0, 0, 0, 40]
    assert [step.epochs for step in iterative(0.8, 2)] == [0, 0]
    assert iterative(0.8, 1, 3) == one_shot(0.8, 3)


@pytest.mark.parametrize("held", [True, False])
def test_each_step_prunes_then_trains(held: bool) -> None:
    model, spent = network("convolutions"), []
    train = trainer()

    def counted(net: nn.Module, epochs: float) -> None:
        spent.append(epochs)
        train(net, epochs)

    sparsity, figures = run_schedule(model, [Step(0.2, 1), Step(0.4, 1), Step(0.6)], counted, held=held)
    assert spent == [1, 1]
    assert [done.pruned for done in figures] == pytest.approx([0.2, 0.4, 0.6], abs=0.01)
    assert figures[2].trained == figures[2].pruned == sparsity.achieved  # nothing trains after the last step
    lost = [done.pruned - done.trained for done in figures[:2]]
    assert lost == [0, 0] if held else min(lost) > 0.05


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"steps": 0}, "steps must be 1 or more, got 0"),
        ({"spacing": "cubic"}, "spacing must be one of linear, geometric, got 'cubic'"),
        ({"retrain": "never"}, "retrain must be one of each, end, got 'never'"),
        ({"epochs": -1}, "epochs must be 0 or more, got -1"),
        ({"rate": 1.2}, "rate must be in [0, 1), got 1.2"),
    ],
)
def test_what_is_no_schedule_is_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        iterative(**{"rate": 0.5, "steps": 2, **options})


def test_rates_do_not_fall() -> None:
    with pytest.raises(ValueError, match=re.escape("whose rates do not fall, got [0.5, 0.2]")):
        run_schedule(network("convolutions"), [Step(0.5), Step(0.2)], trainer())
