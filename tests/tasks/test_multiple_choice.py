from typing import Any

import pytest
import torch
from datasets import Dataset

from hf_mabprune.tasks.base import Task
from hf_mabprune.tasks.sampling import batches_of, split_by_length
from tests.tasks.tiny_tasks import bert, chooser, make_tokenizer, task_of

CLS, SEP, PAD, A, B, C, D = 2, 3, 0, 6, 7, 8, 9


def choice(**settings: Any) -> Task:
    return task_of(chooser(), make_tokenizer("pair"), **settings)


def rows(**changes: list[Any]) -> Dataset:
    fixed = {"question": ["a b", "c"], "choices": [["c", "d d"], ["a b c", "d"]], "label": [1, 0]}
    return Dataset.from_dict({**fixed, **changes})


def test_each_choice_is_framed_with_the_context() -> None:
    task = choice()
    (batch,) = batches_of(task, task.encode(rows()), 8)
    assert batch["input_ids"].tolist() == [
        [[CLS, A, B, SEP, C, SEP, PAD], [CLS, A, B, SEP, D, D, SEP]],
        [[CLS, C, SEP, A, B, C, SEP], [CLS, C, SEP, D, SEP, PAD, PAD]],
    ]
    assert batch["token_type_ids"][0].tolist() == [[0, 0, 0, 0, 1, 1, 0], [0, 0, 0, 0, 1, 1, 1]]
    assert batch["attention_mask"].sum(-1).tolist() == [[6, 7], [7, 5]]
    assert batch["labels"].tolist() == [1, 0]
    assert batch.sequences == 2


def test_logits_are_those_of_each_choice_alone() -> None:
    task, model = choice(), chooser()
    (batch,) = batches_of(task, task.encode(rows()), 8)
    with torch.no_grad():
        readout = task.readout(model, batch)
        alone = model(torch.tensor([[[CLS, C, SEP, D, SEP]]]), token_type_ids=torch.tensor([[[0, 0, 0, 1, 1]]])).logits
    assert readout.outputs.shape == (2, 1, 2)
    torch.testing.assert_close(readout.outputs[1, 0, 1:], alone[0], atol=1e-6, rtol=0)


def test_texts_beside_their_names_are_found_by_name() -> None:
    """As the Hub has OpenBookQA and ARC."""
    named = [{"text": ["c", "d d"], "label": ["A", "B"]}, {"text": ["a b c", "d"], "label": ["A", "B"]}]
    dataset = rows(choices=named, label=["B", "A"]).rename_columns({"question": "question_stem", "label": "answerKey"})
    task = choice()
    task.check(dataset, "train")
    assert task.encode(dataset).to_dict() == task.encode(rows()).to_dict()


def test_an_index_may_be_written_out() -> None:
    """As the Hub has HellaSwag."""
    dataset = rows(label=["1", "0"]).rename_columns({"question": "ctx", "choices": "endings"})
    assert choice().encode(dataset)["labels"][:] == [1, 0]


def test_long_contexts_are_cut() -> None:
    dataset = rows(question=["a b c d e f g h", "c"])
    encoded = choice(max_length=6).encode(dataset)
    assert [len(ids) for ids in encoded["input_ids"][0]] == [6, 6]
    assert encoded["input_ids"][0][0] == [CLS, A, B, SEP, C, SEP]


def test_parts_are_cut_to_their_longest_choice() -> None:
    task = choice()
    dataset = rows(question=["a b c d e f g h", "c"], choices=[["c", "d d"], ["a", "d"]])
    (batch,) = batches_of(task, task.encode(dataset), 8)
    assert [part["input_ids"].shape for part in split_by_length(batch)] == [(1, 2, 5), (1, 2, 13)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"choices": [["a", "b"], ["a", "b", "c"]]},
            r"split 'train', column 'choices': all rows must have as many choices, got 2 in row 0 and 3 in row 1",
        ),
        ({"choices": [["a"], ["b"]]}, "rows must have at least 2 choices, got 1"),
        ({"choices": [["a", "b"], ["a", None]]}, "a choice in row 1 has no text"),
        ({"choices": [["a", "b"], None]}, "column 'choices': no value in row 1"),
        ({"choices": ["a", "b"]}, "choices must be lists of texts, got string"),
        ({"choices": [[1, 2], [3, 4]]}, "choices must be lists of texts, got list"),
        ({"label": [0, 2]}, "split 'train', column 'label': labels must be from 0 to 1, .* got 2 in row 1"),
        ({"label": [-1, 0]}, "got -1 in row 0; this split may have no labels"),
        ({"label": ["", "0"]}, "got '' in row 0; this split may have no labels"),
        ({"label": ["0", "B"]}, "got 'B' in row 1"),
        ({"label": [0.0, 1.0]}, "labels must be the index of a choice, or its name, got double"),
        ({"question": ["a", None]}, "split 'train', column 'question': no value in row 1"),
    ],
)
def test_rows_that_cannot_be_read_are_refused(changes: dict[str, list[Any]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        choice().check(rows(**changes), "train")


def test_a_selection_keeps_choices_and_labels_together() -> None:
    encoded = choice().encode(rows().select([1, 0]))
    assert encoded["labels"][:] == [0, 1]
    assert encoded["input_ids"][0][1] == [CLS, C, SEP, D, SEP]


def test_a_classifier_is_not_for_choices() -> None:
    with pytest.raises(ValueError, match="needs a model class that ends in ForMultipleChoice, got BertForSequence"):
        task_of(bert(), make_tokenizer("pair"), type="multiple_choice")
