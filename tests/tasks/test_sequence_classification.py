from typing import Any

import evaluate
import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from transformers import LlamaForSequenceClassification, RobertaConfig

from hf_mabprune.architectures.positions import max_positions
from hf_mabprune.tasks.base import Task
from hf_mabprune.tasks.sampling import batches_of
from hf_mabprune.tasks.scores import Scores
from tests.tasks.tiny_tasks import bert, llama_config, make_tokenizer, task_of

SENTENCES = ["a b c d e", "a", "c d"]


def classifier(**settings: Any) -> Task:
    return task_of(bert(), make_tokenizer("pair"), **settings)


def labelled(labels: list[Any], feature: Any = None) -> Dataset:
    features = Features({"sentence": Value("string"), "label": feature}) if feature else None
    return Dataset.from_dict({"sentence": SENTENCES[: len(labels)], "label": labels}, features=features)


def test_a_batch_is_padded_on_the_right() -> None:
    task = task_of(bert(), make_tokenizer("pair", padding_side="left"))
    (batch,) = batches_of(task, task.encode(labelled([2, 0, 1])), 8)
    assert batch["input_ids"].tolist() == [[2, 6, 7, 8, 9, 10, 3], [2, 6, 3, 0, 0, 0, 0], [2, 8, 9, 3, 0, 0, 0]]
    assert batch["attention_mask"].sum(1).tolist() == [7, 3, 4]
    assert batch["labels"].tolist() == [2, 0, 1]


def test_padding_does_not_change_the_logits_of_an_encoder() -> None:
    task, model = classifier(), bert()
    (batch,) = batches_of(task, task.encode(labelled([2, 0, 1])), 8)
    with torch.no_grad():
        padded = task.readout(model, batch).outputs[1, 0]
        alone = model(torch.tensor([[2, 6, 3]])).logits[0]
    torch.testing.assert_close(padded, alone, atol=1e-6, rtol=0)


def test_padding_does_not_change_the_logits_of_a_decoder() -> None:
    model = LlamaForSequenceClassification(llama_config(num_labels=3, pad_token_id=0)).eval()
    task = task_of(model, make_tokenizer("plain", padding_side="left"))
    (batch,) = batches_of(task, task.encode(labelled([2, 0, 1])), 8)
    with torch.no_grad():
        padded = task.readout(model, batch).outputs[:, 0]
        alone = torch.cat([model(torch.tensor([ids])).logits for ids in ([6, 7, 8, 9, 10], [6], [8, 9])])
    torch.testing.assert_close(padded, alone, atol=1e-6, rtol=0)


def test_pairs_are_framed_together() -> None:
    task = classifier()
    dataset = Dataset.from_dict({"premise": ["a b"], "hypothesis": ["c"], "label": [1]})
    encoded = task.encode(dataset)[0]
    assert encoded["input_ids"] == [2, 6, 7, 3, 8, 3]
    assert encoded["token_type_ids"] == [0, 0, 0, 0, 1, 1]


@pytest.mark.parametrize(
    ("columns", "given", "found"),
    [
        (["idx", "sentence", "label"], {}, {"text": "sentence", "label": "label"}),
        (["question", "sentence", "label"], {}, {"text": "question", "text_pair": "sentence", "label": "label"}),
        (["sentence1", "sentence2", "labels"], {}, {"text": "sentence1", "text_pair": "sentence2", "label": "labels"}),
        (["premise", "hypothesis", "label"], {"text": "premise"}, {"text": "premise", "label": "label"}),
        (["text", "topic"], {"label": "topic"}, {"text": "text", "label": "topic"}),
    ],
)
def test_usual_columns_are_found(columns: list[str], given: dict[str, str], found: dict[str, str]) -> None:
    dataset = Dataset.from_dict({column: ["a"] for column in columns})
    assert classifier(columns=given).find_columns(dataset, "train") == found


def test_long_texts_are_cut() -> None:
    encoded = classifier(max_length=4).encode(labelled([0, 0, 0]))
    assert encoded["input_ids"][:] == [[2, 6, 7, 3], [2, 6, 3], [2, 8, 9, 3]]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1, 3], r"split 'train', column 'label': labels must be from 0 to 2, .* got 3 in row 2; use a model with"),
        ([0, -1, 1], r"got -1 in row 1; this split may have no labels"),
        ([0.0, 1.5, 1.0], r"split 'train', column 'label': labels must be whole numbers or class names, got double"),
        ([0, None, 1], r"split 'train', column 'label': no value in row 1"),
        (["LABEL_0", "x", "x"], r"labels must be among the model's, label_0, label_1, label_2, got 'x' in row 1"),
    ],
)
def test_labels_that_do_not_fit_the_head_are_refused(labels: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        classifier().check(labelled(labels), "train")


def test_names_are_translated_by_the_models_config() -> None:
    """Data sets and models order classes differently; the name decides, whatever its case."""
    model = bert()
    model.config.id2label = {0: "CONTRADICTION", 1: "NEUTRAL", 2: "ENTAILMENT"}
    model.config.label2id = {name: number for number, name in model.config.id2label.items()}
    task = task_of(model, make_tokenizer("pair"))
    names = ["entailment", "neutral", "contradiction"]
    assert task.encode(labelled(names))["labels"][:] == [2, 1, 0]
    assert task.encode(labelled([0, 1, 2], ClassLabel(names=names)))["labels"][:] == [2, 1, 0]
    assert task.encode(labelled([0, 1, 2], ClassLabel(names=["x", "y", "z"])))["labels"][:] == [0, 1, 2]


def test_a_selection_keeps_texts_and_labels_together() -> None:
    encoded = classifier().encode(labelled([2, 0, 1]).select([2, 0]))
    assert encoded["labels"][:] == [1, 2]
    assert encoded["input_ids"][:] == [[2, 8, 9, 3], [2, 6, 7, 8, 9, 10, 3]]


def test_texts_must_be_strings() -> None:
    with pytest.raises(ValueError, match="split 'test', column 'text': texts must be strings, got int64"):
        classifier().check(Dataset.from_dict({"text": [1], "label": [0]}), "test")


def test_an_empty_text_is_refused_where_it_leaves_no_token() -> None:
    model = LlamaForSequenceClassification(llama_config(num_labels=3, pad_token_id=0)).eval()
    dataset = Dataset.from_dict({"text": ["a", ""], "label": [0, 1]})
    with pytest.raises(ValueError, match="a text must have at least one token, got none in row 1"):
        task_of(model, make_tokenizer("plain")).encode(dataset)
    assert classifier().encode(dataset)["input_ids"][1] == [2, 3]


def test_regression_is_refused() -> None:
    with pytest.raises(ValueError, match=r"num_labels must be at least 2, got 1: regression; set task\.type"):
        task_of(bert(num_labels=1), make_tokenizer("pair"), type="sequence_classification")


def test_several_labels_at_once_are_refused() -> None:
    with pytest.raises(ValueError, match="problem_type must be single_label_classification, got multi_label"):
        model = bert(problem_type="multi_label_classification")
        task_of(model, make_tokenizer("pair"), type="sequence_classification")


def test_padding_that_the_model_does_not_know_is_refused() -> None:
    model = LlamaForSequenceClassification(llama_config(num_labels=3))
    with pytest.raises(ValueError, match="the tokenizer must have a pad token"):
        task_of(model, make_tokenizer("plain", pad_token=None))
    with pytest.raises(ValueError, match="pad_token_id of model config and tokenizer must be equal, got None and 0"):
        task_of(model, make_tokenizer("plain"))


def test_metrics_are_chosen_and_the_first_is_the_main_one() -> None:
    task = classifier(metrics=["matthews_correlation", "f1"])
    assert task.main_metric == "matthews_correlation"
    predicted, reference = np.array([0, 1, 2, 2]), np.array([0, 1, 2, 1])
    one_each = np.ones(4, dtype=np.int64)
    scores = Scores(np.ones(4), one_each, predicted, reference, np.equal(predicted, reference) * 1.0, one_each)
    metrics = task.compute_metrics(scores)
    assert metrics == {"matthews_correlation": pytest.approx(0.7), "f1": pytest.approx((1 + 4 / 3) / 3)}
    with pytest.raises(ValueError, match="metric 'perplexity' needs losses"):
        classifier(metrics=["perplexity"])


class PerClass(evaluate.Metric):
    """Stands for a metric of the Hub with several values."""

    def _info(self) -> evaluate.MetricInfo:
        features = Features({"predictions": Value("int64"), "references": Value("int64")})
        return evaluate.MetricInfo(description="", citation="", features=features)

    def _compute(self, predictions: list[int], references: list[int]) -> dict[str, float]:
        return {str(number): float(predictions.count(number)) for number in set(references)}


def test_a_metric_of_several_values_cannot_be_the_main_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "load", lambda name, **options: PerClass(**options))
    with pytest.raises(ValueError, match=r"the first metric must give one number, 'per_class' gives per_class\.0"):
        classifier(metrics=["per_class"])
    assert classifier(metrics=["accuracy", "per_class"]).main_metric == "accuracy"


def test_positions_of_a_roberta_begin_after_its_padding() -> None:
    assert max_positions(RobertaConfig(max_position_embeddings=514, pad_token_id=1)) == 512

    class Pruned(RobertaConfig):
        model_type = "pruned_roberta"

    assert max_positions(Pruned(max_position_embeddings=514, pad_token_id=1)) == 512
    assert max_positions(bert().config) == 32
