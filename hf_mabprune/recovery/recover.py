"""Recovery: trains a pruned model on the calibration split until it says again what the dense model says.

This is knowledge distillation, with the dense model as the teacher and the pruned one as its student; `losses.py` has
what is minimised, `trainer.py` how. Recovery never sees validation or test data.
"""

import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from inspect import signature

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from datasets import Dataset
from numpy.typing import NDArray
from transformers import PreTrainedModel

from hf_mabprune.config import RecoveryConfig
from hf_mabprune.recovery.batching import batch_order
from hf_mabprune.recovery.course import Course, Keeper
from hf_mabprune.recovery.memory import examples_together
from hf_mabprune.recovery.trained import in_half, takes_steps, trained
from hf_mabprune.recovery.trainer import STATES, DistillationTrainer, not_finite, training_arguments
from hf_mabprune.tasks.base import Task

LAST_PART = 0.1  # part of the steps that the final loss is a mean over


@dataclass(frozen=True)
class RecoveryFigures:
    """What recovery did and cost, over all processes, for the report.

    Attributes:
        method: What was trained, as `RecoveryConfig.method` has it.
        epochs: Passes over the training examples.
        steps: Optimizer steps.
        examples: Number of examples to train on.
        forward_tokens: Positions of input that went through the pruned or the dense model, padding included.
        backward_tokens: Positions that the pruned model was differentiated on.
        seconds: Wall-clock time.
        loss: Mean training loss over the last tenth of the steps.
    """

    method: str
    epochs: float
    steps: int
    examples: int
    forward_tokens: int
    backward_tokens: int
    seconds: float
    loss: float

    def after(self, earlier: "RecoveryFigures | None") -> "RecoveryFigures":
        """Adds what an earlier training of the same model cost."""
        if earlier is None:
            return self
        return replace(
            self,
            epochs=earlier.epochs + self.epochs,
            steps=earlier.steps + self.steps,
            forward_tokens=earlier.forward_tokens + self.forward_tokens,
            backward_tokens=earlier.backward_tokens + self.backward_tokens,
            seconds=earlier.seconds + self.seconds,
        )


def check_recovery(settings: RecoveryConfig, processes: int) -> None:
    """Refuses, before any compute, what cannot work.

    Args:
        settings: Recovery settings.
        processes: Number of processes of the launch.

    Raises:
        ValueError: If the processes of the launch cannot share a batch.
    """
    if settings.batch_size % processes:
        raise ValueError(
            f"recovery.batch_size must be a multiple of the {processes} processes that share a step, "
            f"got {settings.batch_size}"
        )


def check_losses(settings: RecoveryConfig, task: Task, model: PreTrainedModel) -> None:
    """Refuses, with a ValueError, to train by what is not there: labels alone where the data of a task have none, or
    hidden states that the model does not give."""
    if not (settings.alpha or settings.hidden_weight or task.has_loss):
        raise ValueError(
            "recovery.alpha must be above 0, since the data of this task say nothing of what is right, got 0"
        )
    taken = signature(model.forward).parameters.values()
    if settings.hidden_weight and not any(each.name == STATES or each.kind is each.VAR_KEYWORD for each in taken):
        raise ValueError(
            f"recovery.hidden_weight compares hidden states, which {type(model).__name__} does not give: leave it out"
        )


def recover(
    small: PreTrainedModel,
    dense: PreTrainedModel,
    task: Task,
    examples: Dataset,
    settings: RecoveryConfig,
    accelerator: Accelerator,
    seed: int = 0,
    kept: Keeper | None = None,
) -> RecoveryFigures:
    """Trains a pruned model in place. Runs on every process of a launch; all end with the same weights.

    Args:
        small: Pruned model, of either layout, on the accelerator's device. It is left in evaluation mode, and a
            half-precision model is trained in float32 (method full) and rounded again.
        dense: Dense model, there too; it gets no gradients and is left as it was.
        task: Task that the examples are encoded by.
        examples: Encoded examples of the calibration split: never validation or test data.
        settings: Recovery settings.
        accelerator: Accelerator of the launch.
        seed: Seed of the order of the examples, dropout and low-rank updates.
        kept: Where the training is kept, and taken up from; None keeps nothing.

    Raises:
        ValueError: As `check_recovery`, for no examples, or if the loss is not finite; `small` has its weights from
            before then, as after any other error.
        KeyboardInterrupt: In all processes, if the run shall stop, once the training is kept.
    """
    check_recovery(settings, accelerator.num_processes)
    if not len(examples):
        raise ValueError("recovery takes at least one example, got none; choose a larger calibration slice")
    set_seed(seed)
    order = batch_order(task.lengths(examples), settings, seed)
    course = Course(len(order), order.size / len(examples), kept)
    if course.done:
        accelerator.print(f"recovery goes on after step {course.done} of {course.steps}")
    with _undone_on_error(small, settings), _evaluating(dense):
        trainer = _train(small, dense, task, examples, order, settings, accelerator, seed, course)
    forward, backward = accelerator.reduce(trainer.tokens).tolist()
    return RecoveryFigures(
        method=settings.method,
        epochs=course.epochs,
        steps=len(order),
        examples=len(examples),
        forward_tokens=forward,
        backward_tokens=backward,
        seconds=course.seconds,
        loss=float(np.mean(trainer.losses[-math.ceil(LAST_PART * len(trainer.losses)) :])),
    )


def _train(
    small: PreTrainedModel,
    dense: PreTrainedModel,
    task: Task,
    examples: Dataset,
    order: NDArray[np.int64],
    settings: RecoveryConfig,
    accelerator: Accelerator,
    seed: int,
    course: Course,
) -> DistillationTrainer:
    """Takes the steps of `order`, [steps, n], that are left, and gives the trainer that took them."""
    shape = len(order), order.shape[1] // accelerator.num_processes
    together = examples_together(dense, shape[1], int(task.lengths(examples).max()))
    with tempfile.TemporaryDirectory() as folder:
        with trained(small, settings, in_half(dense)):
            trainer = DistillationTrainer(
                dense=dense,
                task=task,
                settings=settings,
                model=small,
                course=course,
                args=training_arguments(settings, shape, course.done, together, accelerator, folder, seed),
                train_dataset=examples.select(order[course.done :].ravel()),
                data_collator=task.collate,
            )
            trainer.run()
        # The loss of a step is of the weights before it, so the last step is looked at by itself.
        if not all(bool(parameter.isfinite().all()) for parameter in small.parameters()):
            raise not_finite(len(order))
    return trainer


@contextmanager
def _undone_on_error(small: PreTrainedModel, settings: RecoveryConfig) -> Iterator[None]:
    """Gives the model its precision, flags and config back after the block; after an error its weights too."""

    def as_it_is(parameter: torch.nn.Parameter) -> torch.Tensor:
        stepping = takes_steps(parameter, settings)  # else it is replaced, and need not be copied
        return parameter.detach().to("cpu", copy=True) if stepping else parameter.detach()

    saved = [(parameter, as_it_is(parameter), parameter.requires_grad) for parameter in small.parameters()]
    config = dict(vars(small.config))
    try:
        yield
    except BaseException:
        for parameter, weights, _ in saved:
            parameter.data = weights.to(parameter.device)
        raise
    finally:
        for parameter, weights, takes_gradients in saved:
            parameter.data = parameter.data.to(weights.dtype)
            parameter.requires_grad_(takes_gradients)
            parameter.grad = None
        vars(small.config).clear()
        vars(small.config).update(config)
        vars(small).pop("_is_accelerate_prepared", None)
        small.eval()


@contextmanager
def _evaluating(dense: PreTrainedModel) -> Iterator[None]:
    """Puts a model into evaluation mode while the block runs."""
    training = dense.training
    dense.eval()
    try:
        yield
    finally:
        dense.train(training)
