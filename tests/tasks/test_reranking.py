from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from sklearn.metrics import ndcg_score

from hf_mabprune.tasks.base import Task
from hf_mabprune.tasks.reranking import RankingReadout
from hf_mabprune.tasks.sampling import batches_of
from tests.tasks.tiny_tasks import bert, make_tokenizer, regressor, task_of

CLS, SEP, PAD, A, B, C, D = 2, 3, 0, 6, 7, 8, 9


def reranker(**settings: Any) -> Task:
    return task_of(regressor(), make_tokenizer("pair"), type="reranking", **settings)


def rows() -> Dataset:
    return Dataset.from_dict(
        {"query": ["a b", "c"], "candidates": [["c", "d d"], ["a b c", "d"]], "label": [1, 0]},
    )


def test_each_candidate_is_a_pair_with_the_query() -> None:
    task = reranker()
    (batch,) = batches_of(task, task.encode(rows()), 8)
    assert task.inputs(batch)["input_ids"].tolist() == [
        [CLS, A, B, SEP, C, SEP, PAD],
        [CLS, A, B, SEP, D, D, SEP],
        [CLS, C, SEP, A, B, C, SEP],
        [CLS, C, SEP, D, SEP, PAD, PAD],
    ]
    assert batch["labels"].tolist() == [1, 0]


def test_outputs_are_those_of_each_pair_alone() -> None:
    task, model = reranker(), regressor()
    (batch,) = batches_of(task, task.encode(rows()), 8)
    with torch.no_grad():
        readout = task.readout(model, batch)
        alone = model(torch.tensor([[CLS, C, SEP, D, SEP]]), token_type_ids=torch.tensor([[0, 0, 0, 1, 1]])).logits
    assert readout.outputs.shape == (2, 1, 2)
    torch.testing.assert_close(readout.outputs[1, :, 1], alone[0], atol=1e-6, rtol=0)


def test_ranks_count_what_is_no_worse() -> None:
    """Of equals the right candidate comes last, and behind all where an output is NaN."""
    nan = torch.nan
    outputs = torch.tensor([[3.0, 1, 2], [3, 1, 2], [1, 1, 0], [nan, 5, 5], [1, nan, 0]])
    readout = RankingReadout(outputs.unsqueeze(1), torch.tensor([[0], [1], [0], [0], [0]]))
    assert readout.scores().ranks.tolist() == [1, 3, 2, 3, 2]


def test_metrics_against_scikit_learn() -> None:
    """With one right candidate the ideal gain is 1."""
    generator = torch.Generator().manual_seed(0)
    outputs, right = torch.randn(20, 1, 5, generator=generator), torch.randint(5, (20, 1), generator=generator)
    metrics = reranker().compute_metrics(RankingReadout(outputs, right).scores())
    relevance = np.eye(5)[right[:, 0].numpy()]
    assert metrics["ndcg"] == pytest.approx(ndcg_score(relevance, outputs[:, 0].numpy()))
    places = outputs[:, 0].argsort(-1, descending=True) == right
    assert metrics["mrr"] == pytest.approx(float((1 / (1.0 + places.int().argmax(-1))).mean()))
    assert metrics["accuracy"] == pytest.approx(float(places[:, 0].double().mean()))


def test_a_classifier_is_no_cross_encoder() -> None:
    with pytest.raises(ValueError, match="num_labels must be 1, how well two texts go together, got 3"):
        task_of(bert(), make_tokenizer("pair"), type="reranking")


def test_rows_are_refused_in_words_of_the_task() -> None:
    uneven = Dataset.from_dict({"query": ["a", "b"], "candidates": [["a", "b"], ["a"]], "label": [0, 0]})
    with pytest.raises(ValueError, match="column 'candidates': all rows must have as many candidates, got 2 in row 0"):
        reranker().check(uneven, "train")
