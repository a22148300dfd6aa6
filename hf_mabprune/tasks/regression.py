"""Prediction of numbers from a text, or from a pair of texts."""

from dataclasses import dataclass
from typing import Any, ClassVar

from datasets import Dataset
from transformers import PreTrainedConfig

from hf_mabprune.data.columns import column_of, first_column
from hf_mabprune.tasks.base import TASKS
from hf_mabprune.tasks.numbers import NumbersTask, check_regressor, is_regression
from hf_mabprune.tasks.text_task import TextTask


@TASKS.register("regression")
@dataclass(kw_only=True)
class Regression(NumbersTask, TextTask):
    """Predicts numbers. Roles: `text`, `text_pair` (optional) and `label`, a number, or a list of one for each output.

    For heads whose config says `problem_type: regression`, or leaves it open and has `num_labels: 1`. The loss is the
    squared error, mean over the outputs. What is called KL divergence is that of Gaussians of variance 1 around the
    outputs, half their squared distance.

    Texts are cut at `max_length` tokens, 256 by default or what tokenizer and model can take, and padded on the right
    to the longest of a batch.
    """

    default_metrics: ClassVar[tuple[str, ...]] = ("pearson", "spearman", "mse")
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
        check_regressor(self.model_config, "regression", for_classes="sequence_classification")
