"""What tasks share whose examples are rows of a table, with a label: classification and regression."""

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from numpy.typing import NDArray

from hf_mabprune.checkpoints.table_processor import TableProcessor
from hf_mabprune.data.columns import RowError, column_of, is_text
from hf_mabprune.registry import nearest
from hf_mabprune.tasks.base import Task
from hf_mabprune.tasks.batch import LABELS, Batch

FEATURES = "features"  # the input of a model, and the column of an encoded example
USUAL_LABELS = ("label", "labels", "target", "class")


@dataclass(kw_only=True)
class TableTask(Task):
    """Reads the columns of a table that the model's table processor was fitted on. Role: `label`."""

    auto_class: ClassVar[str] = "AutoModelForSequenceClassification"
    processor_class: ClassVar[str | None] = TableProcessor.__name__
    roles: ClassVar[tuple[str, ...]] = ("label",)
    metric_inputs: ClassVar[dict[str, str]] = {"predictions": "predicted", "references": "reference"}
    rows_are_examples: ClassVar[bool] = True
    reads_one_position: ClassVar[bool] = True

    processor: TableProcessor = field(repr=False)

    def __post_init__(self) -> None:
        self.check_head()
        features = getattr(self.model_config, "num_features", len(self.processor))
        if features != len(self.processor):
            raise ValueError(
                f"the model reads {features} features, its table processor makes {len(self.processor)}; save both "
                "together again"
            )
        super().__post_init__()

    @abstractmethod
    def check_head(self) -> None:
        """Refuses a head that the task cannot serve, with a ValueError."""

    @abstractmethod
    def labels(self, dataset: Dataset, column: str, split: str) -> NDArray[Any]:
        """Gives what the model is to say of each row; arguments and errors as those of `TextTask.labels`."""

    def usual_columns(self) -> list[dict[str, str]]:
        """Lists the usual names of labels that are no features."""
        return [{"label": name} for name in USUAL_LABELS if name not in self.processor.columns]

    def columns_read(self, dataset: Dataset, split: str) -> list[str]:
        """Names the features, then the label."""
        return [*self.processor.columns, *super().columns_read(dataset, split)]

    def check(self, dataset: Dataset, split: str) -> None:
        """Refuses empty data, missing columns, features of other types, and labels that do not fit the head.

        Features may lack values.
        """
        self.find_columns(dataset, split)
        for name in self.processor.columns:
            if name not in dataset.column_names:
                raise ValueError(
                    f"split '{split}' has no column '{name}', which the model was trained with."
                    f"{nearest(name, dataset.column_names)} Its columns: {', '.join(dataset.column_names)}"
                )
            _check_type(column_of(dataset, name), f"split '{split}', column '{name}'", name in self.processor.medians)
        self.targets(dataset, split)

    def targets(self, dataset: Dataset, split: str) -> NDArray[Any]:
        """Gives the labels."""
        return self.labels(dataset, self.find_columns(dataset, split)["label"], split)

    def encode(self, dataset: Dataset) -> Dataset:
        """Imputes, scales and encodes rows; columns: `features`, [F] float32, and `labels`.

        Raises:
            ValueError: If a number is infinite.
        """
        columns = self.find_columns(dataset, "data")
        table = dataset.select_columns(self.processor.columns).with_format("pandas")[:]
        features = self.processor(table).astype(np.float32)
        broken = np.flatnonzero(~np.isfinite(features).all(axis=1))
        if len(broken):
            raise RowError("numbers must be finite, got others in row {row}; remove such rows", int(broken[0]))
        labels = self.labels(dataset, columns["label"], "data")
        return Dataset.from_dict({FEATURES: list(features), LABELS: labels.tolist()})

    def collate(self, examples: list[dict[str, Any]]) -> Batch:
        """Makes `features`, [B, F] float32, and `labels`, [B] or [B, outputs]."""
        features = torch.tensor(np.array([example[FEATURES] for example in examples], dtype=np.float32))
        return Batch(features=features, labels=torch.tensor([example[LABELS] for example in examples]))


def _check_type(values: pa.ChunkedArray, where: str, number: bool) -> None:
    """Refuses a column that holds something else than the one that the processor was fitted on."""
    kind = values.type
    numeric = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
    if not (numeric or pa.types.is_null(kind) or (is_text(kind) and not number)):
        raise ValueError(f"{where}: features must be {'numbers' if number else 'texts or numbers'}, got {kind}")
