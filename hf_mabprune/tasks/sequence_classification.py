"""Single-label classification of a text, or of a pair of texts."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets import ClassLabel, Dataset
from numpy.typing import NDArray
from transformers import PreTrainedConfig

from hf_mabprune.data.columns import column_of, first_column, refuse_missing_values
from hf_mabprune.tasks.base import TASKS
from hf_mabprune.tasks.batch import Batch
from hf_mabprune.tasks.readout import Readout
from hf_mabprune.tasks.text_task import TextTask, is_regression


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
        column = first_column(dataset, "label", columns, cls.usual_labels)
        values, feature = column_of(dataset, column), dataset.features[column]
        names = list(feature.names) if isinstance(feature, ClassLabel) else None
        if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
            names = sorted(pc.unique(values).drop_null().to_pylist())
        if names:
            return {"id2label": dict(enumerate(names)), "label2id": {name: n for n, name in enumerate(names)}}
        if not (pa.types.is_integer(values.type) or pa.types.is_boolean(values.type)):
            raise ValueError(f"column '{column}': labels must be whole numbers or class names, got {values.type}")
        return {"num_labels": int(pc.max(values.cast(pa.int64())).as_py()) + 1}

    def check_head(self) -> None:
        """Refuses regression, and classes that do not exclude each other."""
        if self.classes < 2:
            raise ValueError(
                f"num_labels must be at least 2, got {self.classes}: regression; set task.type: regression, or use a "
                "model with a class for each label"
            )
        if self.model_config.problem_type not in (None, "single_label_classification"):
            raise ValueError(
                f"problem_type must be single_label_classification, got {self.model_config.problem_type}; "
                "use a model whose classes exclude each other"
            )

    def labels(self, dataset: Dataset, column: str, split: str) -> NDArray[np.int64]:
        """Gives the class number of each row, as the head counts, [N]."""
        values = column_of(dataset, column)
        where = f"split '{split}', column '{column}'"
        refuse_missing_values(values, column, split)
        known = {str(name).casefold(): int(number) for name, number in (self.model_config.label2id or {}).items()}
        feature = dataset.features[column]
        if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
            return self._by_name(values.to_pylist(), known, where)
        if not (pa.types.is_integer(values.type) or pa.types.is_boolean(values.type)):
            raise ValueError(f"{where}: labels must be whole numbers or class names, got {values.type}")
        classes = values.to_numpy().astype(np.int64)
        self._check_range(classes, where)
        if isinstance(feature, ClassLabel) and all(name.casefold() in known for name in feature.names):
            return np.array([known[name.casefold()] for name in feature.names])[classes]
        return classes

    def _by_name(self, names: list[str], known: dict[str, int], where: str) -> NDArray[np.int64]:
        for row, name in enumerate(names):
            if name.casefold() not in known:
                raise ValueError(
                    f"{where}: labels must be among the model's, {', '.join(known)}, got '{name}' in row {row}; "
                    "set label2id in the model's config, or rename the labels"
                )
        return np.array([known[name.casefold()] for name in names], dtype=np.int64)

    def _check_range(self, classes: NDArray[np.int64], where: str) -> None:
        count = self.classes
        wrong = np.flatnonzero((classes < 0) | (classes >= count))
        if len(wrong):
            value = int(classes[wrong[0]])
            remedy = "this split may have no labels, choose another" if value < 0 else "use a model with more classes"
            raise ValueError(
                f"{where}: labels must be from 0 to {count - 1}, the classes of the model's head, got {value} "
                f"in row {wrong[0]}; {remedy}"
            )

    def read(self, logits: torch.Tensor, batch: Batch) -> Readout:
        """Makes the one position of each example a dimension, [B, C] -> [B, 1, C]."""
        return Readout(logits=logits[:, None], targets=batch["labels"][:, None])
