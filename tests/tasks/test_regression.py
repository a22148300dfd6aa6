from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

from hf_mabprune.tasks.base import Task
from hf_mabprune.tasks.lookup import task_for_model
from hf_mabprune.tasks.numbers import NumbersReadout
from hf_mabprune.tasks.regression import Regression
from hf_mabprune.tasks.sampling import batches_of
from hf_mabprune.tasks.scores import Scores
from tests.tasks.tiny_tasks import bert, make_tokenizer, regressor, task_of

NAME = "BertForSequenceClassification"


def regression(**settings: Any) -> Task:
    return task_of(regressor(), make_tokenizer("pair"), **settings)


def scored(values: list[Any]) -> Dataset:
    return Dataset.from_dict({"sentence": ["a b", "c", "d e"][: len(values)], "score": values})


def test_the_config_tells_numbers_from_classes() -> None:
    assert task_for_model(NAME) == "sequence_classification"
    assert task_for_model(NAME, bert().config) == "sequence_classification"
    assert task_for_model(NAME, regressor().config) == "regression"
    assert task_for_model(NAME, bert(num_labels=2, problem_type="regression").config) == "regression"
    assert task_for_model(NAME, bert(problem_type="multi_label_classification").config) == "multi_label_classification"


def test_a_classifier_is_refused() -> None:
    with pytest.raises(ValueError, match=r"regression needs a model .* got problem_type None and num_labels 3; set"):
        task_of(bert(), make_tokenizer("pair"), type="regression")


def test_hand_computed_example() -> None:
    """Outputs 1 and 3 against 0 and 5; then moved by 2 and -1."""
    readout = NumbersReadout(torch.tensor([[[1.0], [3.0]]]), torch.tensor([[0.0, 5.0]]))
    moved = NumbersReadout(torch.tensor([[[3.0], [2.0]]]), torch.tensor([[0.0, 5.0]]))
    assert readout.losses().tolist() == [(1 + 4) / 2]
    assert moved.divergence(readout).tolist() == [(2 + 0.5) / 2]
    assert readout.divergence(readout).tolist() == [0.0]
    assert readout.positions().tolist() == [2]
    assert readout.correct().isnan().all()


def test_divergence_over_several_arms() -> None:
    original = NumbersReadout(torch.zeros(2, 1, 1), torch.zeros(2, 1))
    arms = NumbersReadout(torch.tensor([1.0, 2.0, 3.0, 4.0]).view(2, 2, 1, 1), torch.zeros(2, 1))
    assert arms.divergence(original, original.distribution()).tolist() == [[0.5, 2.0], [4.5, 8.0]]


def test_half_the_squares_of_the_coordinates_are_the_divergence() -> None:
    dense = NumbersReadout(torch.tensor([[[1.0], [2.0]]]), torch.zeros(1, 2))
    moved = NumbersReadout(torch.tensor([[[4.0], [6.0]]]), torch.zeros(1, 2))
    coordinates = list(moved.coordinates(dense, samples=3, seed=0))
    assert [u.tolist() for u in coordinates] == [pytest.approx([3 / 2**0.5]), pytest.approx([4 / 2**0.5])]
    assert moved.divergence(dense).tolist() == pytest.approx([(9 + 16) / 4])
    assert float(sum(u.square() for u in coordinates)) / 2 == pytest.approx((9 + 16) / 4)


def test_scores_keep_the_numbers() -> None:
    task, model = regression(), regressor()
    (batch,) = batches_of(task, task.encode(scored([1.5, -2.0, 3.0])), 8)
    with torch.no_grad():
        scores = task.readout(model, batch).scores()
        outputs = model(**task.inputs(batch)).logits[:, 0]
    assert scores.reference.tolist() == [1.5, -2.0, 3.0]
    assert scores.predicted.dtype == np.float64
    np.testing.assert_allclose(scores.predicted, outputs.numpy())
    np.testing.assert_allclose(scores.losses, (scores.predicted - scores.reference) ** 2)


def test_several_outputs() -> None:
    model = bert(num_labels=2, problem_type="regression")
    task = task_of(model, make_tokenizer("pair"))
    dataset = scored([[1.0, 2.0], [3.0, 4.0], [0.0, -1.0]])
    (batch,) = batches_of(task, task.encode(dataset), 8)
    with torch.no_grad():
        readout = task.readout(model, batch)
        own = model(**batch).loss
    assert float(readout.losses().mean()) == pytest.approx(float(own), abs=1e-6)
    scores = Scores.concatenate([readout.scores(), readout.scores()])
    assert scores.take(np.array([0, 4])).reference.tolist() == [[1.0, 2.0], [3.0, 4.0]]
    assert set(task.compute_metrics(scores)) == {"pearson", "spearman", "mse"}
    with pytest.raises(ValueError, match="labels must be lists of 2 numbers, one for each output"):
        task.check(scored([1.0, 2.0, 3.0]), "train")


def test_whole_numbers_will_do() -> None:
    assert regression().encode(scored([1, 2, 5]))["labels"][:] == [1.0, 2.0, 5.0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["1", "2"], "split 'train', column 'score': labels must be numbers, got string"),
        ([1.0, None], "column 'score': no value in row 1"),
        ([1.0, float("inf")], "labels must be finite numbers, got .*inf.* in row 1"),
    ],
)
def test_labels_that_are_no_numbers_are_refused(values: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        regression().check(scored(values), "train")


def test_the_score_comes_before_a_label_of_classes() -> None:
    dataset = Dataset.from_dict({"premise": ["a"], "hypothesis": ["b"], "label": [0], "relatedness": [4.5]})
    found = {"text": "premise", "text_pair": "hypothesis", "label": "relatedness"}
    assert regression().find_columns(dataset, "train") == found


def test_metrics_of_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="metric 'accuracy' compares classes, this task predicts numbers"):
        regression(metrics=["accuracy"])
    assert not regression(metrics=["mse"]).greater_is_better


def test_a_new_head_has_an_output_for_each_number() -> None:
    assert Regression.new_head(scored([1.0, 2.0]), {}) == {"num_labels": 1, "problem_type": "regression"}
    lists = Dataset.from_dict({"text": ["a"], "x": [[1.0, 2.0, 3.0]]})
    assert Regression.new_head(lists, {"label": "x"})["num_labels"] == 3
    with pytest.raises(ValueError, match=r"no column 'y' \(role label\). Its columns: text, x"):
        Regression.new_head(lists, {"label": "y"})
