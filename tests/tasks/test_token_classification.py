from typing import Any

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, List, Value

from hf_mabprune.tasks.base import Task
from hf_mabprune.tasks.sampling import batches_of
from hf_mabprune.tasks.token_classification import TokenClassification
from tests.tasks.tiny_tasks import TAGS, make_tokenizer, tagger, task_of

CLS, SEP, PAD, A, B, C, D = 2, 3, 0, 6, 7, 8, 9
NONE = -100


def marked(words: list[Any], tags: list[Any], feature: Any = None) -> Dataset:
    features = Features({"tokens": List(Value("string")), "ner_tags": List(feature)}) if feature else None
    return Dataset.from_dict({"tokens": words, "ner_tags": tags}, features=features)


def task(**settings: Any) -> Task:
    return task_of(tagger(), make_tokenizer("pair"), **settings)


def test_a_word_is_judged_by_its_first_token() -> None:
    (batch,) = batches_of(task(), task().encode(marked([["a b", "c"], ["d"]], [[1, 2], [0]])), 8)
    assert batch["input_ids"].tolist() == [[CLS, A, B, C, SEP], [CLS, D, SEP, PAD, PAD]]
    assert batch["labels"].tolist() == [[NONE, 1, NONE, 2, NONE], [NONE, 0, NONE, NONE, NONE]]


def test_words_beyond_the_longest_sequence_are_not_judged() -> None:
    encoded = task(max_length=4).encode(marked([["a", "b", "c", "d"]], [[1, 2, 0, 1]]))
    assert encoded["labels"][:] == [[NONE, 1, 2, NONE]]


def test_names_of_tags_are_translated() -> None:
    by_name = marked([["a", "b", "c"]], [["I-X", "O", "B-X"]])
    other_order = marked([["a", "b", "c"]], [[0, 1, 2]], ClassLabel(names=["I-X", "O", "B-X"]))
    for dataset in (by_name, other_order):
        assert task().encode(dataset)["labels"][0] == [NONE, 2, 0, 1, NONE]


def test_metrics_are_of_words_and_of_spans() -> None:
    """The second of three spans has the wrong end: precision and recall are 2/3; six of seven words are right."""
    words, tags = [list("abcd"), list("efg")], [[1, 2, 0, 1], [1, 2, 0]]
    logits = torch.nn.functional.one_hot(torch.tensor([[0, 1, 2, 0, 1, 0], [0, 1, 2, 2, 0, 0]]), 3).float()
    (batch,) = batches_of(task(), task().encode(marked(words, tags)), 8)
    metrics = task().compute_metrics(task().read(logits, batch).scores())
    assert metrics == {"entity_f1": pytest.approx(2 / 3), "accuracy": pytest.approx(6 / 7)}


def test_a_resample_keeps_the_words_of_a_sentence_together() -> None:
    words, tags = [list("abcd"), ["e"], list("fg")], [[1, 2, 0, 1], [0], [1, 2]]
    (batch,) = batches_of(task(), task().encode(marked(words, tags)), 8)
    with torch.no_grad():
        scores = task().readout(tagger(), batch).scores()
    again = scores.take(np.array([2, 0]))
    assert again.reference.tolist() == [1, 2, 1, 2, 0, 1]
    assert again.answers.tolist() == [2, 4]


@pytest.mark.parametrize(
    ("words", "tags", "message"),
    [
        ([["a"], ["b", "c"]], [[0], [1]], "a class for each, got 2 words and 1 classes in row 1"),
        ([["a"], []], [[0], []], "each row must have words, .* got 0 words and 0 classes in row 1"),
        ([["a"], ["b", "c"]], [[0], [1, 3]], "labels must be from 0 to 2, .* got 3 in row 1"),
        ([["a"], ["b", "c"]], [["O"], ["B-X", "B-Y"]], "labels must be among the model's, .* got 'B-Y' in row 1"),
        ([["a"], ["b"]], [[0], [None]], "column 'ner_tags': a label is missing in row 1"),
        ([["a"], [None]], [[0], [1]], "column 'tokens': a word has no text"),
        (["a", "b"], [[0], [1]], "column 'tokens': words must be lists of texts, got string"),
        ([["a"], ["b"]], [0, 1], "column 'ner_tags': labels must be lists, of numbers or names of classes, got int64"),
    ],
)
def test_rows_that_do_not_fit_are_refused(words: list[Any], tags: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"split 'train', .*{message}"):
        task().check(marked(words, tags), "train")


def test_a_row_whose_words_have_no_token_is_refused() -> None:
    with pytest.raises(ValueError, match="a row must have a word with a token, got none in row 1"):
        task().encode(marked([["a"], [""]], [[0], [1]]))


def test_a_new_head_has_the_tags_of_the_data() -> None:
    expected = {"id2label": dict(enumerate(TAGS)), "label2id": {tag: number for number, tag in enumerate(TAGS)}}
    assert TokenClassification.new_head(marked([["a"]], [[0]], ClassLabel(names=TAGS)), {}) == expected
    assert TokenClassification.new_head(marked([["a", "b"]], [[0, 4]]), {}) == {"num_labels": 5}
