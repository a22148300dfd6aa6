"""Numbers that a model is to predict: read from a data set, and what outputs say of them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from numpy.typing import NDArray
from transformers import PreTrainedConfig

from hf_mabprune.data.columns import full_column, is_list
from hf_mabprune.tasks.base import Task
from hf_mabprune.tasks.batch import LABELS, Batch
from hf_mabprune.tasks.readout import Readout, wide_dtype
from hf_mabprune.tasks.scores import Scores


@dataclass(frozen=True)
class NumbersReadout(Readout):
    """Outputs that are numbers; each counts as a position and as the mean of a Gaussian of variance 1.

    Attributes:
        outputs: P outputs of each example, [B, P, 1]; [A, B, P, 1] for `divergence`.
        targets: Right numbers, [B, P], floating.
    """

    def counted(self) -> torch.Tensor:
        """Counts all positions, [B, P] bool."""
        return torch.ones_like(self.targets, dtype=torch.bool)

    def losses(self) -> torch.Tensor:
        """Measures the squared error, mean over the outputs, [B] float64 (float32 on MPS). Differentiable."""
        return (self.distribution() - self.targets).square().mean(-1)

    def correct(self) -> torch.Tensor:
        """Gives no number, [B] NaN: numbers are near or far, not right or wrong."""
        return torch.full_like(self.targets[:, 0], torch.nan)

    def predictions(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Gives the outputs and the right numbers, [B] each, or [B, P] where there are several."""
        predicted, reference = self.distribution(), self.targets.to(wide_dtype(self.outputs))
        return (predicted[:, 0], reference[:, 0]) if predicted.shape[1] == 1 else (predicted, reference)

    def answers(self) -> torch.Tensor:
        """Counts one row of outputs an example, [B] int64."""
        return torch.ones_like(self.targets[:, 0], dtype=torch.int64)

    def distribution(self) -> torch.Tensor:
        """Gives the means of the Gaussians, [B, P], in float64 (float32 on MPS)."""
        return self.outputs.squeeze(-1).to(wide_dtype(self.outputs))

    def divergence(self, dense: Readout, distribution: torch.Tensor | None = None) -> torch.Tensor:
        """Measures KL(N(z0, 1) || N(z, 1)) = (z - z0)^2 / 2, mean over the outputs, [B] or [A, B]."""
        means = dense.distribution() if distribution is None else distribution
        return (self.distribution() - means).square().mean(-1) / 2

    def few_outputs(self) -> bool:
        """Says yes: each output is a coordinate."""
        return True

    def coordinates(self, dense: Readout, samples: int, seed: int) -> Iterator[torch.Tensor]:
        """Gives u_i = (z_i - z0_i) / sqrt(P) for each of P outputs, [B] each: 1/2 sum_i u_i^2 is the divergence."""
        change = self.distribution() - dense.distribution().detach()
        yield from (change / change.shape[1] ** 0.5).unbind(1)


class NumbersTask(Task):
    """What tasks share whose models predict numbers, whatever they read."""

    predicts_classes: ClassVar[bool] = False
    loss_name: ClassVar[str] = "squared error"

    def rehearsal(self) -> Scores:
        """Makes examples with different numbers, all predicted right."""
        return some_numbers(self.classes)

    def labels(self, dataset: Dataset, column: str, split: str) -> NDArray[np.float64]:
        """Gives the numbers of each row, [N] or [N, outputs]."""
        return numbers_of(dataset, column, split, self.classes)

    def read(self, logits: torch.Tensor, batch: Batch) -> NumbersReadout:
        """Makes each output a position, [B, outputs] -> [B, outputs, 1]."""
        return NumbersReadout(outputs=logits.unsqueeze(-1), targets=batch[LABELS].reshape(logits.shape))


def some_numbers(outputs: int) -> Scores:
    """Makes the scores of three examples with different numbers, all predicted right."""
    shape = (3,) if outputs == 1 else (3, outputs)
    numbers = np.arange(np.prod(shape)).reshape(shape) + 0.5
    ones = np.ones(3, dtype=np.int64)
    return Scores(np.ones(3), ones, numbers, numbers, np.full(3, np.nan), ones)


def numbers_of(dataset: Dataset, column: str, split: str, outputs: int) -> NDArray[np.float64]:
    """Gives the numbers of each row, [N], or [N, outputs] where there are several.

    Args:
        dataset: Data set with the labels.
        column: Column that holds them.
        split: Name of the split, for messages.
        outputs: Outputs of the head.

    Raises:
        ValueError: For labels that are no finite numbers, or not one for each output; the message names split, column
            and row.
    """
    values = full_column(dataset, column, split)
    where = f"split '{split}', column '{column}'"
    numbers = values.combine_chunks()
    if outputs > 1:
        if not is_list(values.type) or any(len(row) != outputs for row in values.to_pylist()):
            raise ValueError(f"{where}: labels must be lists of {outputs} numbers, one for each output")
        numbers = numbers.flatten()
    if not (pa.types.is_floating(numbers.type) or pa.types.is_integer(numbers.type)):
        raise ValueError(f"{where}: labels must be numbers, got {values.type}")
    targets = numbers.to_numpy(zero_copy_only=False).astype(np.float64).reshape(len(values), outputs)
    broken = np.flatnonzero(~np.isfinite(targets).all(axis=1))
    if len(broken):
        raise ValueError(f"{where}: labels must be finite numbers, got {targets[broken[0]]} in row {broken[0]}")
    return targets if outputs > 1 else targets[:, 0]


def check_regressor(model_config: PreTrainedConfig, task: str, for_classes: str) -> None:
    """Refuses heads that predict classes, with a ValueError.

    Args:
        model_config: Config of the model.
        task: Name of the task.
        for_classes: Name of the task for such heads.
    """
    if not is_regression(model_config):
        raise ValueError(
            f"{task} needs a model whose config says problem_type: regression, or num_labels: 1, got problem_type "
            f"{model_config.problem_type} and num_labels {model_config.num_labels}; set task.type: {for_classes} for "
            "a classifier"
        )


def is_regression(model_config: PreTrainedConfig | None) -> bool:
    """Tells whether a head predicts numbers: its config says so, or leaves it open and has one output.

    Transformers chooses the loss of a head by the same rule.
    """
    if model_config is None:
        return False
    kind = model_config.problem_type
    return bool(kind == "regression" or (kind is None and model_config.num_labels == 1))
