"""Labels of classifiers: which classes a head needs for a data set, and which class of a head a label is.

Symbols: N rows.
"""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset
from numpy.typing import NDArray
from transformers import PreTrainedConfig

from hf_mabprune.data.columns import column_of, refuse_missing_values


def new_classes(dataset: Dataset, column: str) -> dict[str, Any]:
    """Gives the config fields of a head that has one class for each name, or for each number up to the largest.

    Args:
        dataset: Data with the labels.
        column: Column that holds them.

    Raises:
        ValueError: If the labels are neither whole numbers nor names.
    """
    values, feature = column_of(dataset, column), dataset.features[column]
    names = list(feature.names) if isinstance(feature, ClassLabel) else None
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        names = sorted(pc.unique(values).drop_null().to_pylist())
    if names:
        return {"id2label": dict(enumerate(names)), "label2id": {name: n for n, name in enumerate(names)}}
    if not (pa.types.is_integer(values.type) or pa.types.is_boolean(values.type)):
        raise ValueError(f"column '{column}': labels must be whole numbers or class names, got {values.type}")
    return {"num_labels": int(pc.max(values.cast(pa.int64())).as_py()) + 1}


def check_classifier(model_config: PreTrainedConfig) -> None:
    """Refuses heads for regression, and classes that do not exclude each other, with a ValueError."""
    if (classes := int(model_config.num_labels or 0)) < 2:
        raise ValueError(
            f"num_labels must be at least 2, got {classes}: regression; set task.type: regression, or use a model "
            "with a class for each label"
        )
    if model_config.problem_type not in (None, "single_label_classification"):
        raise ValueError(
            f"problem_type must be single_label_classification, got {model_config.problem_type}; "
            "use a model whose classes exclude each other"
        )


def class_numbers(dataset: Dataset, column: str, split: str, model_config: PreTrainedConfig) -> NDArray[np.int64]:
    """Gives the class of each row as the head counts, [N].

    Labels are class numbers, or class names that the model's `label2id` has; a `ClassLabel` column whose names
    `label2id` has is translated by name, since data sets and models may order classes differently. Upper and lower
    case are alike.

    Args:
        dataset: Data with the labels.
        column: Column that holds them.
        split: Name of the split, for messages.
        model_config: Config of the classifier.

    Raises:
        ValueError: For labels that do not fit the head; the message names split, column and row.
    """
    values = column_of(dataset, column)
    where = f"split '{split}', column '{column}'"
    refuse_missing_values(values, column, split)
    known = {str(name).casefold(): int(number) for name, number in (model_config.label2id or {}).items()}
    feature = dataset.features[column]
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        return _by_name(values.to_pylist(), known, where)
    if not (pa.types.is_integer(values.type) or pa.types.is_boolean(values.type)):
        raise ValueError(f"{where}: labels must be whole numbers or class names, got {values.type}")
    classes = values.to_numpy().astype(np.int64)
    _check_range(classes, int(model_config.num_labels or 0), where)
    if isinstance(feature, ClassLabel) and all(name.casefold() in known for name in feature.names):
        return np.array([known[name.casefold()] for name in feature.names])[classes]
    return classes


def _by_name(names: list[str], known: dict[str, int], where: str) -> NDArray[np.int64]:
    for row, name in enumerate(names):
        if name.casefold() not in known:
            raise ValueError(
                f"{where}: labels must be among the model's, {', '.join(known)}, got '{name}' in row {row}; "
                "set label2id in the model's config, or rename the labels"
            )
    return np.array([known[name.casefold()] for name in names], dtype=np.int64)


def _check_range(classes: NDArray[np.int64], count: int, where: str) -> None:
    wrong = np.flatnonzero((classes < 0) | (classes >= count))
    if len(wrong):
        value = int(classes[wrong[0]])
        remedy = "this split may have no labels, choose another" if value < 0 else "use a model with more classes"
        raise ValueError(
            f"{where}: labels must be from 0 to {count - 1}, the classes of the model's head, got {value} "
            f"in row {wrong[0]}; {remedy}"
        )
