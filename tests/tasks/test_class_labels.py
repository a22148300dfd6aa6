from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from datasets import ClassLabel, Dataset, Features

from hf_mabprune.tasks.class_labels import check_classifier, class_names, class_numbers
from tests.tasks.tiny_tasks import bert_config


def labelled(labels: Any, names: list[str] | None = None) -> Dataset:
    features = Features({"label": ClassLabel(names=names)}) if names else None
    return Dataset.from_dict({"label": labels}, features)


def numbers(dataset: Dataset, **config: Any) -> list[int]:
    return class_numbers(dataset, "label", "test", bert_config(**config)).tolist()


NAMED = {"id2label": {0: "negative", 1: "positive"}}


def test_names_are_known_from_either_mapping() -> None:
    """Transformers leaves label2id out where a config gives id2label alone."""
    assert bert_config(num_labels=2, **NAMED).label2id is None
    assert numbers(labelled(["positive", "Negative"]), num_labels=2, **NAMED) == [1, 0]
    both = {**NAMED, "label2id": {"negative": 0, "positive": 1}}
    assert numbers(labelled(["positive", "Negative"]), num_labels=2, **both) == [1, 0]


def test_classes_in_another_order_are_translated_by_name() -> None:
    assert numbers(labelled([0, 1, 0], ["positive", "negative"]), num_labels=2, **NAMED) == [1, 0, 1]
    assert numbers(labelled([0, 1, 0], ["0", "1"]), num_labels=2, **NAMED) == [0, 1, 0]


def test_names_that_agree_in_part_and_not_in_order_are_refused() -> None:
    with pytest.raises(ValueError, match="'positive' is class 0 of the data and 1 of the model, which has no 'bad'"):
        numbers(labelled([0, 1], ["positive", "bad"]), num_labels=2, **NAMED)
    assert numbers(labelled([0, 1], ["negative", "good"]), num_labels=2, **NAMED) == [0, 1]


def test_mappings_that_contradict_each_other_are_refused() -> None:
    swapped = bert_config(num_labels=2, **NAMED, label2id={"negative": 1, "positive": 0})
    with pytest.raises(
        ValueError, match="id2label and label2id of the model's config must agree, got 0 and 1 for 'neg"
    ):
        check_classifier(swapped)
    outside = bert_config(num_labels=2, **NAMED, label2id={"negative": 0, "positive": 1, "neutral": 2})
    with pytest.raises(ValueError, match="must be from 0 to 1, got 2 for 'neutral'"):
        check_classifier(outside)


def test_names_that_differ_in_case_alone_are_told_apart() -> None:
    assert class_names(bert_config(num_labels=2, id2label={0: "a", 1: "A"})) == {"a": 0, "A": 1}
    assert numbers(labelled(["A", "a"]), num_labels=2, id2label={0: "a", 1: "A"}) == [1, 0]


@pytest.mark.parametrize("kind", [pa.int8(), pa.uint64(), pa.int32(), pa.bool_()])
def test_whole_numbers_of_any_kind_are_classes(kind: pa.DataType) -> None:
    assert numbers(Dataset(pa.table({"label": pa.array([1, 0, 1]).cast(kind)}))) == [1, 0, 1]


@pytest.mark.parametrize("value", [2**63, 2**64 - 1, 3])
def test_classes_beyond_the_head_are_named_as_they_are(value: int) -> None:
    with pytest.raises(
        ValueError, match=f"labels must be from 0 to 2, .* got {value} in row 1; use a model with more"
    ):
        numbers(labelled(np.array([0, value], np.uint64)))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0.0, 1.0], "whole numbers or class names, got double; convert it to int64"),
        (["0", "1"], "among the model's, .* got '0' in row 0"),
        ([[0], [1]], "whole numbers or class names, got list"),
        ([b"a", b"b"], "whole numbers or class names, got binary"),
        ([0, None], "no value in row 1"),
    ],
)
def test_labels_of_another_kind_are_refused(labels: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        numbers(labelled(labels))
