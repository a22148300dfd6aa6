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

from hf_mabprune.data.columns import RowError, column_of, full_column, is_list, is_text, plain


def new_classes(dataset: Dataset, column: str) -> dict[str, Any]:
    """Gives the config fields of a head that has one class for each name, or for each number up to the largest.

    Args:
        dataset: Data with the labels.
        column: Column that holds them, one a row or a list.

    Raises:
        ValueError: If the labels are neither whole numbers nor names.
    """
    values, feature = _flat(column_of(dataset, column), dataset.features[column])
    names = list(feature.names) if isinstance(feature, ClassLabel) else None
    if is_text(values.type):
        names = sorted(pc.unique(values).drop_null().to_pylist())
    if names:
        return {"id2label": dict(enumerate(names)), "label2id": {name: n for n, name in enumerate(names)}}
    if not (pa.types.is_integer(values.type) or pa.types.is_boolean(values.type)):
        raise ValueError(f"column '{column}': labels must be whole numbers or class names, got {values.type}")
    return {"num_labels": int(pc.max(values.cast(pa.int64())).as_py()) + 1}


def check_classifier(model_config: PreTrainedConfig, for_numbers: str = "regression") -> None:
    """Refuses heads for regression, classes that do not exclude each other, and names of classes that contradict each
    other, with a ValueError.

    Args:
        model_config: Config of the model.
        for_numbers: Name of the task for heads that predict numbers.
    """
    if (classes := int(model_config.num_labels or 0)) < 2:
        raise ValueError(
            f"num_labels must be at least 2, got {classes}: regression; set task.type: {for_numbers}, or use a model "
            "with a class for each label"
        )
    if model_config.problem_type not in (None, "single_label_classification"):
        raise ValueError(
            f"problem_type must be single_label_classification, got {model_config.problem_type}; "
            "use a model whose classes exclude each other"
        )
    class_names(model_config)


def class_names(model_config: PreTrainedConfig) -> dict[str, int]:
    """Gives name -> class for the names that a head has for its classes, in lower case where that tells them apart.

    Raises:
        ValueError: If `id2label` and `label2id` of the config contradict each other, or name a class that is none.
    """
    names: dict[str, Any] = {str(name): number for number, name in (model_config.id2label or {}).items()}
    for name, number in (model_config.label2id or {}).items():
        if names.setdefault(str(name), number) != number:
            raise ValueError(
                f"id2label and label2id of the model's config must agree, got {names[str(name)]} and {number} for "
                f"'{name}'; set both as in training"
            )
    count = int(model_config.num_labels or 0)
    for name, number in names.items():
        if not (isinstance(number, int) and 0 <= number < count):
            raise ValueError(
                f"classes of the model's config must be from 0 to {count - 1}, got {number!r} for '{name}'; set "
                "id2label and label2id as in training"
            )
    folded = {name.casefold(): number for name, number in names.items()}
    return folded if len(folded) == len(names) else names


def class_numbers(dataset: Dataset, column: str, split: str, model_config: PreTrainedConfig) -> NDArray[np.int64]:
    """Gives the class of each row as the head counts, [N].

    Labels are class numbers, or class names that the model's config has; a `ClassLabel` column whose names it has is
    translated by name, since data sets and models may order classes differently. Upper and lower case are alike.

    Args:
        dataset: Data with the labels.
        column: Column that holds them.
        split: Name of the split, for messages.
        model_config: Config of the classifier.

    Raises:
        ValueError: For labels that do not fit the head; the message names split, column and row.
    """
    where = f"split '{split}', column '{column}'"
    return _numbers(full_column(dataset, column, split), dataset.features[column], model_config, where)


def class_lists(
    dataset: Dataset, column: str, split: str, model_config: PreTrainedConfig
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Gives the classes in the lists of each row, as `class_numbers` does of rows with one.

    Returns:
        Classes of all lists, one after the other, [M], and how many are of each row, [N].
    """
    values = full_column(dataset, column, split)
    where = f"split '{split}', column '{column}'"
    if not is_list(values.type):
        raise ValueError(f"{where}: labels must be lists, of numbers or names of classes, got {values.type}")
    counts = pc.list_value_length(values).to_numpy()
    flat, feature = _flat(values, dataset.features[column])
    try:
        if flat.null_count:
            missing = int(np.flatnonzero(flat.is_null().to_numpy())[0])
            raise RowError(f"{where}: a label is missing in row {{row}}; remove such rows", missing)
        return _numbers(flat, feature, model_config, where), counts
    except RowError as error:
        raise RowError(error.message, int(np.arange(len(counts)).repeat(counts)[error.row])) from error


def _flat(values: pa.ChunkedArray, feature: Any) -> tuple[pa.ChunkedArray, Any]:
    """Gives what lists hold, one after the other, with its feature; other values as they are."""
    if not is_list(values.type):
        return values, feature
    return plain(pc.list_flatten(values)), getattr(feature, "feature", feature)


def _numbers(values: pa.ChunkedArray, feature: Any, model_config: PreTrainedConfig, where: str) -> NDArray[np.int64]:
    """Gives the class that each label is, [M]; a RowError has the number of a label, not of a row."""
    known = class_names(model_config)
    if is_text(values.type):
        return _by_name(values.to_pylist(), known, where)
    if not (pa.types.is_integer(values.type) or pa.types.is_boolean(values.type)):
        remedy = "; convert it to int64" if pa.types.is_floating(values.type) else ""
        raise ValueError(f"{where}: labels must be whole numbers or class names, got {values.type}{remedy}")
    classes = values.to_numpy()
    _check_range(classes, int(model_config.num_labels or 0), where)
    classes = classes.astype(np.int64)
    if isinstance(feature, ClassLabel):
        return _order_of(feature.names, known, where)[classes]
    return classes


def _order_of(names: list[str], known: dict[str, int], where: str) -> NDArray[np.int64]:
    """Gives the class of the head for each class of the data; in the order of the data where the names have nothing to
    do with each other."""
    numbers = [_number_of(name, known) for name in names]
    if all(number is not None for number in numbers):
        return np.array(numbers, dtype=np.int64)
    for number, (name, other) in enumerate(zip(names, numbers, strict=True)):
        if other not in (None, number):
            raise ValueError(
                f"{where}: the classes of data and model must have the same names, or none in common, but '{name}' is "
                f"class {number} of the data and {other} of the model, which has no "
                f"'{names[numbers.index(None)]}'; rename the classes of either"
            )
    return np.arange(len(names), dtype=np.int64)


def _number_of(name: str, known: dict[str, int]) -> int | None:
    return known.get(name, known.get(name.casefold()))


def _by_name(names: list[str], known: dict[str, int], where: str) -> NDArray[np.int64]:
    numbers = [_number_of(name, known) for name in names]
    if None in numbers:
        row = numbers.index(None)
        raise RowError(
            f"{where}: labels must be among the model's, {', '.join(known)}, got '{names[row]}' in row {{row}}; "
            "set label2id in the model's config, or rename the labels",
            row,
        )
    return np.array(numbers, dtype=np.int64)


def _check_range(classes: NDArray[Any], count: int, where: str) -> None:
    wrong = np.flatnonzero((classes < 0) | (classes >= count))
    if len(wrong):
        value = int(classes[wrong[0]])
        remedy = "this split may have no labels, choose another" if value < 0 else "use a model with more classes"
        raise RowError(
            f"{where}: labels must be from 0 to {count - 1}, the classes of the model's head, got {value} "
            f"in row {{row}}; {remedy}",
            int(wrong[0]),
        )
