"""Single-label classification of a text, or of a pair of texts."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from transformers import PreTrainedConfig

from hf_mabprune.data.columns import first_column
from hf_mabprune.tasks.base import TASKS
from hf_mabprune.tasks.batch import Batch
from hf_mabprune.tasks.class_labels import check_classifier, class_numbers, new_classes
from hf_mabprune.tasks.numbers import is_regression
from hf_mabprune.tasks.readout import Readout
from hf_mabprune.tasks.text_task import TextTask


@TASKS.register("sequence_classification")
@dataclass(kw_only=True)
class SequenceClassification(TextTask):
    """Predicts the class of a text. Roles: `text`, `text_pair` (optional) and `label`.

    Texts are cut at `max_length` tokens, 256 by default or what tokenizer and model can take, and padded on the right
    to the longest of a batch. Labels are class numbers, or class names that the model's `label2id` has; a `ClassLabel`
    column whose names `label2id` has is translated by name, since data sets and models may order classes differently.
    """

    default_metrics: ClassVar[tuple[str, ...]] = ("accuracy",)
    usual_labels: ClassVar[tuple[str, ...]] = ("label", "labels")

    @classmethod
    def serves(cls, architecture: str, model_config: PreTrainedConfig | None = None) -> bool:
        """Serves every head of the kind that is not for regression."""
        return super().serves(architecture, model_config) and not is_regression(model_config)

    @classmethod
    def new_head(cls, dataset: Dataset, columns: dict[str, str]) -> dict[str, Any]:
        """Gives a head one class for each name, or for each number up to the largest."""
        return new_classes(dataset, first_column(dataset, "label", columns, cls.usual_labels))

    def check_head(self) -> None:
        """Refuses regression, and classes that do not exclude each other."""
        check_classifier(self.model_config)

    def labels(self, dataset: Dataset, column: str, split: str) -> NDArray[np.int64]:
        """Gives the class number of each row, as the head counts, [N]."""
        return class_numbers(dataset, column, split, self.model_config)

    def read(self, logits: torch.Tensor, batch: Batch) -> Readout:
        """Makes the one position of each example a dimension, [B, C] -> [B, 1, C]."""
        return Readout(outputs=logits[:, None], targets=batch["labels"][:, None])
