"""Prediction of numbers from a row of a table."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray

from hf_mabprune.tasks.base import TASKS
from hf_mabprune.tasks.batch import Batch
from hf_mabprune.tasks.numbers import check_regressor, numbers_of, numbers_readout, some_numbers
from hf_mabprune.tasks.readout import Readout
from hf_mabprune.tasks.scores import Scores
from hf_mabprune.tasks.table_task import TableTask


@TASKS.register("tabular_regression")
@dataclass(kw_only=True)
class TabularRegression(TableTask):
    """Predicts a number from a row of a table. Role: `label`; features are the columns of the model's table processor.

    Features may lack values, which the processor fills in. Loss and divergence are those of `regression`: they go by
    the square of the label's unit, so a label of variance 1 keeps them near those of other tasks.
    """

    pipeline_tag: ClassVar[str] = "tabular-regression"
    heads: ClassVar[tuple[str, ...]] = ("ForRegression", "ForTabularRegression")
    default_metrics: ClassVar[tuple[str, ...]] = ("r2", "mse")
    predicts_classes: ClassVar[bool] = False
    loss_name: ClassVar[str] = "squared error"

    @classmethod
    def new_head(cls, dataset: Dataset, columns: dict[str, str]) -> dict[str, Any]:
        """Gives a head one output."""
        return {"num_labels": 1, "problem_type": "regression"}

    def check_head(self) -> None:
        """Refuses classifiers."""
        check_regressor(self.model_config, "tabular_regression", for_classes="tabular_classification")

    def rehearsal(self) -> Scores:
        """Makes examples with different numbers, all predicted right."""
        return some_numbers(self.classes)

    def labels(self, dataset: Dataset, column: str, split: str) -> NDArray[np.float64]:
        """Gives the numbers of each row, [N] or [N, outputs]."""
        return numbers_of(dataset, column, split, self.classes)

    def read(self, logits: torch.Tensor, batch: Batch) -> Readout:
        """Makes each output a position, [B, outputs] -> [B, outputs, 1]."""
        return numbers_readout(logits, batch["labels"])
