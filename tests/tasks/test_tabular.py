"""Rows of tables: which columns are read, what is refused, and what numbers are predicted."""

from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from sklearn.metrics import r2_score

from hf_mabprune.tasks.base import Task
from hf_mabprune.tasks.metrics import load_metric, measure
from hf_mabprune.tasks.tabular_regression import TabularRegression
from hf_mabprune.tasks.together import check_splits
from tests.seeds import moved
from tests.tasks.tiny_tables import CLASSES, table_classifier, table_processor, table_regressor
from tests.tasks.tiny_tasks import task_of


def classifier(**settings: Any) -> Task:
    return task_of(table_classifier(), table_processor(), **settings)


def test_features_are_those_of_the_processor_and_may_lack_values() -> None:
    dataset = Dataset.from_dict({**CLASSES, "note": ["a"] * 5})
    assert classifier().columns_read(dataset, "train") == ["height", "age", "colour", "label"]
    encoded = classifier().encode(dataset)
    assert np.array(encoded["features"][:]).shape == (5, 7)
    assert np.isfinite(encoded["features"][:]).all()


def test_labels_may_have_another_name_and_be_names() -> None:
    model = table_classifier(num_labels=2, id2label={0: "low", 1: "high"}, label2id={"low": 0, "high": 1})
    task = task_of(model, table_processor(), columns={"label": "kind"})
    rows = {
        "kind": ["low", "high", "high", "low", "low"],
        **{name: CLASSES[name] for name in ("height", "age", "colour")},
    }
    assert task.encode(Dataset.from_dict(rows))["labels"][:] == [0, 1, 1, 0, 0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"age": None}, "split 'test' has no column 'age', which the model was trained with. Did you mean 'aged'"),
        ({"age": list("abcde")}, "split 'test', column 'age': features must be numbers, got string"),
        ({"colour": [[1]] * 5}, "split 'test', column 'colour': features must be texts or numbers, got list"),
    ],
)
def test_columns_of_another_kind_are_refused(changes: dict[str, Any], message: str) -> None:
    rows = {name: values for name, values in {**CLASSES, **changes, "aged": [1] * 5}.items() if values is not None}
    with pytest.raises(ValueError, match=message):
        classifier().check(Dataset.from_dict(rows), "test")


def test_infinite_numbers_are_refused() -> None:
    rows = {**CLASSES, "height": [1.0, float("inf"), 1.0, 1.0, 1.0]}
    with pytest.raises(ValueError, match="numbers must be finite, got others in row 1"):
        classifier().encode(Dataset.from_dict(rows))


def test_a_processor_of_another_model_is_refused() -> None:
    with pytest.raises(ValueError, match="the model reads 9 features, its table processor makes 7"):
        task_of(table_classifier(num_features=9), table_processor())


def test_splits_that_share_labels_alone_are_apart() -> None:
    rng = np.random.default_rng(moved(0))
    splits = {}
    for name in ("calibration", "test"):
        age = rng.permutation(1000)[:40].tolist()
        rows = {"label": [0, 1, 2, 0] * 10, "height": rng.normal(size=40), "colour": ["red"] * 40, "age": age}
        splits[name] = Dataset.from_dict(rows)
    assert check_splits(classifier(), splits) == []
    with pytest.raises(ValueError, match="calibration and test hold the same 40 rows"):
        check_splits(classifier(), {"calibration": splits["test"], "test": splits["test"]})


def test_r2_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(moved(0))
    right, predicted = rng.normal(size=(2, 30))
    metric = load_metric("r2", ("predictions", "references"), 1, predicts_classes=False)
    assert metric.greater_is_better
    for references in (right, np.ones(30)):
        given = {"predictions": predicted, "references": references}
        assert measure("r2", metric, given)["r2"] == pytest.approx(r2_score(references, predicted))


def test_regression_wants_a_head_for_numbers() -> None:
    assert isinstance(task_of(table_regressor(), table_processor()), TabularRegression)
    with pytest.raises(ValueError, match="tabular_regression needs a model whose config says problem_type"):
        task_of(table_regressor(num_labels=3), table_processor())
