"""Prediction of numbers from a row of a table."""

from dataclasses import dataclass
from typing import Any, ClassVar

from datasets import Dataset

from hf_mabprune.tasks.base import TASKS
from hf_mabprune.tasks.numbers import NumbersTask, check_regressor
from hf_mabprune.tasks.table_task import TableTask


@TASKS.register("tabular_regression")
@dataclass(kw_only=True)
class TabularRegression(NumbersTask, TableTask):
    """Predicts a number from a row of a table. Role: `label`; features are the columns of the model's table processor.

    Features may lack values, which the processor fills in. Loss and divergence are those of `regression`: they go by
    the square of the label's unit, so a label of variance 1 keeps them near those of other tasks.
    """

    pipeline_tag: ClassVar[str] = "tabular-regression"
    heads: ClassVar[tuple[str, ...]] = ("ForRegression", "ForTabularRegression")
    default_metrics: ClassVar[tuple[str, ...]] = ("r2", "mse")

    @classmethod
    def new_head(cls, dataset: Dataset, columns: dict[str, str]) -> dict[str, Any]:
        """Gives a head one output."""
        return {"num_labels": 1, "problem_type": "regression"}

    def check_head(self) -> None:
        """Refuses classifiers."""
        check_regressor(self.model_config, "tabular_regression", for_classes="tabular_classification")
