"""Single-label classification of a row of a table."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray

from hf_mabprune.data.columns import first_column
from hf_mabprune.tasks.base import TASKS
from hf_mabprune.tasks.batch import Batch
from hf_mabprune.tasks.class_labels import check_classifier, class_numbers, new_classes
from hf_mabprune.tasks.readout import Readout
from hf_mabprune.tasks.table_task import USUAL_LABELS, TableTask


@TASKS.register("tabular_classification")
@dataclass(kw_only=True)
class TabularClassification(TableTask):
    """Predicts the class of a row of a table. Role: `label`; features are the columns of the model's table processor.

    Features may lack values, which the processor fills in. Labels are class numbers, or class names that the model's
    `label2id` has, as in `sequence_classification`.
    """

    pipeline_tag: ClassVar[str] = "tabular-classification"
    heads: ClassVar[tuple[str, ...]] = ("ForClassification", "ForTabularClassification")
    default_metrics: ClassVar[tuple[str, ...]] = ("accuracy",)

    @classmethod
    def new_head(cls, dataset: Dataset, columns: dict[str, str]) -> dict[str, Any]:
        """Gives a head one class for each name, or for each number up to the largest."""
        return new_classes(dataset, first_column(dataset, "label", columns, USUAL_LABELS))

    def check_head(self) -> None:
        """Refuses regression, and classes that do not exclude each other."""
        check_classifier(self.model_config, for_numbers="tabular_regression")

    def labels(self, dataset: Dataset, column: str, split: str) -> NDArray[np.int64]:
        """Gives the class number of each row, as the head counts, [N]."""
        return class_numbers(dataset, column, split, self.model_config)

    def read(self, logits: torch.Tensor, batch: Batch) -> Readout:
        """Makes the one position of each example a dimension, [B, C] -> [B, 1, C]."""
        return Readout(outputs=logits[:, None], targets=batch["labels"][:, None])
