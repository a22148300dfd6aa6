"""Prediction of numbers from a text, or from a pair of texts."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from numpy.typing import NDArray
from transformers import PreTrainedConfig

from hf_mabprune.data.columns import column_of, first_column, full_column, is_list
from hf_mabprune.tasks.base import TASKS
from hf_mabprune.tasks.batch import Batch
from hf_mabprune.tasks.readout import Readout, wide_dtype
from hf_mabprune.tasks.scores import Scores
from hf_mabprune.tasks.text_task import TextTask, is_regression


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


@TASKS.register("regression")
@dataclass(kw_only=True)
class Regression(TextTask):
    """Predicts numbers. Roles: `text`, `text_pair` (optional) and `label`, a number, or a list of one for each output.

    For heads whose config says `problem_type: regression`, or leaves it open and has `num_labels: 1`. The loss is the
    squared error, mean over the outputs. What is called KL divergence is that of Gaussians of variance 1 around the
    outputs, half their squared distance.

    Texts are cut at `max_length` tokens, 256 by default or what tokenizer and model can take, and padded on the right
    to the longest of a batch.
    """

    default_metrics: ClassVar[tuple[str, ...]] = ("pearson", "spearman", "mse")
    predicts_classes: ClassVar[bool] = False
    loss_name: ClassVar[str] = "squared error"
    usual_labels: ClassVar[tuple[str, ...]] = ("score", "relatedness_score", "relatedness", "label", "labels")

    @classmethod
    def serves(cls, architecture: str, model_config: PreTrainedConfig | None = None) -> bool:
        """Serves heads for regression, which only the config can tell from classifiers."""
        return super().serves(architecture, model_config) and is_regression(model_config)

    @classmethod
    def new_head(cls, dataset: Dataset, columns: dict[str, str]) -> dict[str, Any]:
        """Gives a head one output for each number of a row."""
        values = column_of(dataset, first_column(dataset, "label", columns, cls.usual_labels))
        row = values[0].as_py()
        return {"num_labels": len(row) if isinstance(row, list) else 1, "problem_type": "regression"}

    def check_head(self) -> None:
        """Refuses classifiers."""
        if not is_regression(self.model_config):
            raise ValueError(
                f"regression needs a model whose config says problem_type: regression, or num_labels: 1, got "
                f"problem_type {self.model_config.problem_type} and num_labels {self.classes}; set task.type: "
                "sequence_classification for a classifier"
            )

    def rehearsal(self) -> Scores:
        """Makes three examples with different numbers, all predicted right."""
        shape = (3,) if self.classes == 1 else (3, self.classes)
        numbers = np.arange(np.prod(shape)).reshape(shape) + 0.5
        ones = np.ones(3, dtype=np.int64)
        return Scores(np.ones(3), ones, numbers, numbers, np.full(3, np.nan), ones)

    def labels(self, dataset: Dataset, column: str, split: str) -> NDArray[np.float64]:
        """Gives the numbers of each row, [N] or [N, outputs]."""
        values = full_column(dataset, column, split)
        where = f"split '{split}', column '{column}'"
        numbers, several = values.combine_chunks(), self.classes > 1
        if several:
            if not is_list(values.type) or any(len(row) != self.classes for row in values.to_pylist()):
                raise ValueError(f"{where}: labels must be lists of {self.classes} numbers, one for each output")
            numbers = numbers.flatten()
        if not (pa.types.is_floating(numbers.type) or pa.types.is_integer(numbers.type)):
            raise ValueError(f"{where}: labels must be numbers, got {values.type}")
        targets = numbers.to_numpy(zero_copy_only=False).astype(np.float64).reshape(len(values), self.classes)
        broken = np.flatnonzero(~np.isfinite(targets).all(axis=1))
        if len(broken):
            raise ValueError(f"{where}: labels must be finite numbers, got {targets[broken[0]]} in row {broken[0]}")
        return targets if several else targets[:, 0]

    def read(self, logits: torch.Tensor, batch: Batch) -> Readout:
        """Makes each output a position, [B, outputs] -> [B, outputs, 1]."""
        return NumbersReadout(outputs=logits.unsqueeze(-1), targets=batch["labels"].reshape(logits.shape))
