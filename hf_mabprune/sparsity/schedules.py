"""Schedules: how far to prune, and how long to train after it, step by step.

A schedule is a sequence of steps, each a rate, of all counted weights, and the epochs of training after it. To compare
schedules fairly they must train equally long in all; papers often give each step of an iterative schedule what a
one-shot schedule has in all, and `iterative(..., equal=False)` makes that comparison too.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from hf_mabprune.sparsity.sparsity import Sparsity, sparsify

SPACINGS, RETRAIN = ("linear", "geometric"), ("each", "end")


@dataclass(frozen=True)
class Step:
    """One step of a schedule.

    Attributes:
        rate: Part of the weights that is zero after it, of all, [0, 1).
        epochs: Training after it.
    """

    rate: float
    epochs: float = 0

    def __post_init__(self) -> None:
        if not 0 <= self.rate < 1:
            raise ValueError(f"rate must be in [0, 1), got {self.rate}")
        if not 0 <= self.epochs < math.inf:
            raise ValueError(f"epochs must be 0 or more, got {self.epochs}")


@dataclass(frozen=True)
class StepFigures:
    """What a step did.

    Attributes:
        step: What was to be done.
        pruned: Part of the counted weights that was zero after pruning.
        trained: The same after the step's training: less where nothing held the zeros.
    """

    step: Step
    pruned: float
    trained: float


def one_shot(rate: float, epochs: float = 0) -> list[Step]:
    """Prunes at once, then trains for so many epochs; 0: not at all."""
    return [Step(rate, epochs)]


def iterative(
    rate: float,
    steps: int,
    epochs: float = 0,
    *,
    spacing: Literal["linear", "geometric"] = "linear",
    retrain: Literal["each", "end"] = "each",
    equal: bool = True,
) -> list[Step]:
    """Prunes in steps.

    Args:
        rate: Rate of the last step.
        steps: Number of steps, n.
        epochs: Training: of all steps together, or of each where `equal` is False. Where there is one for every step
            whole epochs stay whole, the first steps getting those that cannot be shared out; fewer are shared out in
            equal parts, for a step that is never trained after would be as bad as its cut.
        spacing: "linear" takes the same part of all weights in every step, rate * i / n; "geometric" the same part of
            what is left, 1 - (1 - rate)^(i / n).
        retrain: "each" trains after every step, "end" after the last alone.
        equal: Whether the schedule trains as long in all as `one_shot` of the same epochs.

    Raises:
        ValueError: For a rate outside of [0, 1), no steps, epochs below 0 or a word that is not one.
    """
    if steps < 1:
        raise ValueError(f"steps must be 1 or more, got {steps}")
    Step(rate, epochs)
    for name, value, known in (("spacing", spacing, SPACINGS), ("retrain", retrain, RETRAIN)):
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
    if spacing == "linear":
        rates = [rate * i / steps for i in range(1, steps + 1)]
    else:
        rates = [1 - (1 - rate) ** (i / steps) for i in range(1, steps + 1)]
    rates[-1] = rate  # not what rounding makes of it
    total = epochs if equal or retrain == "end" else epochs * steps
    spent = [0.0] * (steps - 1) + [total] if retrain == "end" else _shared(total, steps)
    return [Step(*pair) for pair in zip(rates, spent, strict=True)]


def run_schedule(
    model: nn.Module, schedule: Sequence[Step], train: Callable[[nn.Module, float], Any], **options: Any
) -> tuple[Sparsity, list[StepFigures]]:
    """Prunes and trains a network, step by step, in place.

    Args:
        model: Any network that `sparsify` takes.
        schedule: Steps, of rising rates.
        train: (model, epochs) trains the network; called after every step with epochs. Masks are held while it runs,
            unless `held` is False.
        options: Further arguments of `sparsify`.

    Returns:
        The zeros, and what each step did. Masks are still there: `Sparsity.make_permanent` ends that.

    Raises:
        ValueError: As `sparsify`, for a schedule without steps, or rates that fall.
    """
    rates = [step.rate for step in schedule]
    if not rates or rates != sorted(rates):
        raise ValueError(f"a schedule has steps whose rates do not fall, got {rates}")
    figures = []
    for step in schedule:
        sparsity = sparsify(model, step.rate, **options)
        pruned = sparsity.achieved
        if step.epochs:
            train(model, step.epochs)
        figures.append(StepFigures(step, pruned, sparsity.achieved))
    return sparsity, figures


def _shared(epochs: float, steps: int) -> list[float]:
    """Shares epochs out; whole ones stay whole where no step goes without."""
    if epochs != int(epochs) or epochs < steps:
        return [epochs / steps] * steps
    each, rest = divmod(int(epochs), steps)
    return [each + (i < rest) for i in range(steps)]
