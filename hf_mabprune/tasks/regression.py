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

from hf_mabprune.tasks.base import TASKS, Batch, Readout, Scores, column_of, refuse_missing_values
from hf_mabprune.tasks.readout import wide_dtype
from hf_mabprune.tasks.text_task import TextTask, first_column, is_regression


@dataclass(frozen=True)
class NumbersReadout(Readout):
    """Outputs that are numbers; each counts as a position and as the mean of a Gaussian of variance 1.

    Attributes:
        logits: [B, P, 1], the P outputs; [A, B, P, 1] for `divergence`.
        targets: [B, P], floating, the right numbers.
    """

    def counted(self) -> torch.Tensor:
        """[B, P] bool, all of them."""
        return torch.ones_like(self.targets, dtype=torch.bool)

    def losses(self) -> torch.Tensor:
        """[B] float64 (float32 on MPS), squared error, mean over the outputs. Differentiable."""
        return (self.distribution() - self.targets).square().mean(-1)

    def correct(self) -> torch.Tensor:
        """[B], not a number: numbers are near or far, not right or wrong."""
        return torch.full_like(self.targets[:, 0], torch.nan)

    def predictions(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The outputs and the right numbers, [B] each, or [B, P] where there are several."""
        predicted, reference = self.distribution(), self.targets.to(wide_dtype(self.logits))
        return (predicted[:, 0], reference[:, 0]) if predicted.shape[1] == 1 else (predicted, reference)

    def distribution(self) -> torch.Tensor:
        """The means of the Gaussians, [B, P], in float64 (float32 on MPS)."""
        return self.logits.squeeze(-1).to(wide_dtype(self.logits))

    def divergence(self, original: Readout, distribution: torch.Tensor | None = None) -> torch.Tensor:
        """[B] or [A, B], KL divergence of Gaussians of variance 1: (z - z0)^2 / 2, mean over the outputs."""
        means = original.distribution() if distribution is None else distribution
        return (self.distribution() - means).square().mean(-1) / 2

    def few_outputs(self) -> bool:
        """They always are."""
        return True

    def coordinates(self, original: Readout, samples: int, seed: int) -> Iterator[torch.Tensor]:
        """[B] each, the change of every output over the square root of their number: exact."""
        moved = self.distribution() - original.distribution().detach()
        yield from (moved / moved.shape[1] ** 0.5).unbind(1)


@TASKS.register("regression")
@dataclass(kw_only=True)
class Regression(TextTask):
    """Roles: `text`, `text_pair` (optional) and `label`, a number, or a list of one number for each output.

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
        """Heads for regression, which only the config can tell from classifiers."""
        return super().serves(architecture, model_config) and is_regression(model_config)

    @classmethod
    def new_head(cls, dataset: Dataset, columns: dict[str, str]) -> dict[str, Any]:
        """One output for each number of a row."""
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
        """Three examples with different numbers."""
        shape = (3,) if self.classes == 1 else (3, self.classes)
        numbers = np.arange(np.prod(shape)).reshape(shape) + 0.5
        return Scores(np.ones(3), np.ones(3, dtype=np.int64), numbers, numbers)

    def labels(self, dataset: Dataset, column: str, split: str) -> NDArray[np.float64]:
        """[N] numbers, or [N, outputs]."""
        values = column_of(dataset, column)
        where = f"split '{split}', column '{column}'"
        refuse_missing_values(values, column, split)
        numbers, several = values.combine_chunks(), self.classes > 1
        if several:
            lists = pa.types.is_list(values.type) or pa.types.is_fixed_size_list(values.type)
            if not lists or any(len(row) != self.classes for row in values.to_pylist()):
                raise ValueError(f"{where}: labels must be lists of {self.classes} numbers, one for each output")
            numbers = numbers.flatten()
        if not (pa.types.is_floating(numbers.type) or pa.types.is_integer(numbers.type)):
            raise ValueError(f"{where}: labels must be numbers, got {values.type}")
        found = numbers.to_numpy(zero_copy_only=False).astype(np.float64).reshape(len(values), self.classes)
        broken = np.flatnonzero(~np.isfinite(found).all(axis=1))
        if len(broken):
            raise ValueError(f"{where}: labels must be finite numbers, got {found[broken[0]]} in row {broken[0]}")
        return found if several else found[:, 0]

    def read(self, logits: torch.Tensor, batch: Batch) -> Readout:
        """[B, outputs] -> an output a position, [B, outputs, 1]."""
        return NumbersReadout(logits=logits.unsqueeze(-1), targets=batch["labels"].reshape(logits.shape))
