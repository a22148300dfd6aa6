from typing import Any

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, List, Value
from sklearn.metrics import f1_score
from torch.nn.functional import binary_cross_entropy_with_logits

from hf_mabprune.tasks.base import Task
from hf_mabprune.tasks.multi_label_classification import LabelsReadout, MultiLabelClassification
from hf_mabprune.tasks.sampling import batches_of
from hf_mabprune.tasks.scores import Scores
from tests.seeds import moved
from tests.tasks.tiny_tasks import bert, make_tokenizer, multi_label, task_of


def task(**settings: Any) -> Task:
    return task_of(multi_label(), make_tokenizer("pair"), **settings)


def labelled(labels: list[Any], feature: Any = None) -> Dataset:
    features = Features({"text": Value("string"), "labels": feature}) if feature else None
    return Dataset.from_dict({"text": ["a b", "c", "d e"][: len(labels)], "labels": labels}, features=features)


def read(logits: list[list[float]], targets: list[list[int]]) -> LabelsReadout:
    outputs = torch.tensor(logits)
    return LabelsReadout(torch.stack([torch.zeros_like(outputs), outputs], -1), torch.tensor(targets))


@pytest.mark.parametrize(
    ("labels", "feature"),
    [
        ([[1, 0, 1], [0, 0, 0]], None),
        ([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]], None),
        ([[True, False, True], [False, False, False]], None),
        ([[0, 2], []], None),
        ([["LABEL_2", "label_0"], []], None),
        ([[0, 1], []], List(ClassLabel(names=["LABEL_2", "LABEL_0", "LABEL_1"]))),
    ],
)
def test_a_list_says_yes_and_no_or_what_applies(labels: list[Any], feature: Any) -> None:
    assert task().encode(labelled(labels, feature))["labels"][:] == [[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]


def test_each_label_is_predicted_by_itself() -> None:
    readout = read([[2.0, -1.0], [-3.0, 0.5]], [[1, 1], [0, 0]])
    expected = binary_cross_entropy_with_logits(
        torch.tensor([[2.0, -1.0], [-3.0, 0.5]]).double(), readout.targets.double(), reduction="none"
    ).mean(1)
    torch.testing.assert_close(readout.losses(), expected)
    assert [column.tolist() for column in readout.predictions()] == [[1, 0, 0, 1], [1, 1, 0, 0]]
    assert readout.correct().tolist() == [0.5, 0.5]


def test_divergence_is_that_of_bernoulli_distributions() -> None:
    dense, moved_by = read([[2.0, -1.0]], [[1, 0]]), read([[1.0, 0.5]], [[1, 0]])
    p, q = (torch.distributions.Bernoulli(logits=readout.outputs[..., 1].double()) for readout in (dense, moved_by))
    torch.testing.assert_close(moved_by.divergence(dense), torch.distributions.kl_divergence(p, q).mean(1))


def test_half_the_squares_of_the_coordinates_are_the_divergence() -> None:
    dense, near = read([[2.0, -1.0, 0.3]], [[1, 0, 0]]), read([[2.001, -1.002, 0.3015]], [[1, 0, 0]])
    squares = sum(u.square() for u in near.coordinates(dense, samples=1, seed=0))
    torch.testing.assert_close(squares / 2, near.divergence(dense), rtol=1e-3, atol=0)


def test_metrics_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(moved(0))
    predicted, right = rng.integers(0, 2, (2, 30, 3))
    three, ones = np.full(30, 3), np.ones(30)
    correct = (predicted == right).mean(1)
    scores = Scores(ones, three, predicted.ravel(), right.ravel(), correct, three)
    metrics = task(metrics=["micro_f1", "macro_f1", "accuracy", "exact_match", "f1"]).compute_metrics(scores)
    micro = f1_score(right, predicted, average="micro")
    assert metrics["micro_f1"] == pytest.approx(micro)
    assert metrics["f1"] == pytest.approx(micro), "of class 1, over all labels"
    assert metrics["macro_f1"] == pytest.approx(f1_score(right, predicted, average="macro"))
    assert metrics["accuracy"] == pytest.approx((predicted == right).mean())
    assert metrics["exact_match"] == pytest.approx((predicted == right).all(1).mean())


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([[1, 0, 1], [0, 4]], "labels must be from 0 to 2, .* got 4 in row 1"),
        ([[0.2, 0.0, 1.0]], "labels must be lists of 3 numbers, 0 or 1 for each label of the head"),
        ([["LABEL_1"], ["odd"]], "labels must be among the model's, .* got 'odd' in row 1"),
        ([0, 1], "labels must be lists, of numbers or names of classes, got int64"),
        ([[0], None], "no value in row 1"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"split 'train', column 'labels': {message}"):
        task().check(labelled(labels), "train")


def test_classes_that_exclude_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="says problem_type: multi_label_classification, got None; set"):
        task_of(bert(), make_tokenizer("pair"), type="multi_label_classification")


def test_a_new_head_has_the_labels_of_the_data() -> None:
    kind = {"problem_type": "multi_label_classification"}
    assert MultiLabelClassification.new_head(labelled([[1, 0, 1, 0], [0, 0, 0, 1]]), {}) == {"num_labels": 4, **kind}
    assert MultiLabelClassification.new_head(labelled([[0, 4], [1]]), {}) == {"num_labels": 5, **kind}
    named = MultiLabelClassification.new_head(labelled([["x", "y"], []]), {})
    assert named == {"id2label": {0: "x", 1: "y"}, "label2id": {"x": 0, "y": 1}, **kind}


def test_heads_of_other_models_make_a_batch_too() -> None:
    (batch,) = batches_of(task(), task().encode(labelled([[1, 0, 1], [0, 1, 0]])), 8)
    assert batch["labels"].dtype == torch.float32
    assert batch["labels"].tolist() == [[1, 0, 1], [0, 1, 0]]
