from typing import Any

import pytest
import torch
from datasets import Dataset

from hf_mabprune.tasks.base import Task
from hf_mabprune.tasks.question_answering import normal, word_f1
from hf_mabprune.tasks.sampling import batches_of, split_by_length
from tests.tasks.tiny_tasks import make_tokenizer, reader, task_of

CLS, SEP, A, B, C, D, E = 2, 3, 6, 7, 8, 9, 10


def task(**settings: Any) -> Task:
    return task_of(reader(), make_tokenizer("pair"), **settings)


def asked(context: str, *answers: str, question: str = "a b") -> dict[str, Any]:
    return {
        "question": question,
        "context": context,
        "answers": {"text": list(answers), "answer_start": [context.find(answer) for answer in answers]},
    }


def rows(*asked_rows: dict[str, Any]) -> Dataset:
    return Dataset.from_list(list(asked_rows))


def test_labels_are_the_first_and_the_last_token_of_the_first_answer() -> None:
    (batch,) = batches_of(task(), task().encode(rows(asked("c d e f", "d e", "d"), asked("g", "g"))), 8)
    assert batch["input_ids"][0].tolist() == [CLS, A, B, SEP, C, D, E, 11, SEP]
    assert batch["labels"].tolist() == [[5, 6], [4, 4]]


def test_a_long_context_is_cut_to_a_window_with_the_answer() -> None:
    """Ten letters three times over, of which six have room."""
    context = " ".join("abcdefghij" * 3)
    for start in range(30):
        row = asked(context, "x")
        letter = context[2 * start]
        row["answers"] = {"text": [letter], "answer_start": [2 * start]}
        (found,) = task(max_length=11).encode(rows(row))
        assert len(found["input_ids"]) == 11
        assert found["input_ids"][:4] == [CLS, A, B, SEP]
        first, last = found["labels"]
        assert first == last
        assert found["input_ids"][first] == A + "abcdefghij".index(letter)
        shown, answer = found["texts"].split("\0")
        begin, end = found["offsets"][first]
        assert shown[begin:end] == answer == letter
        assert context[2 * start - begin :].startswith(shown)


def test_an_answer_that_fills_more_than_half_a_window_is_shown_whole() -> None:
    (found,) = task(max_length=11).encode(rows(asked(" ".join("abcdefghij" * 2), "d e f g h")))
    first, last = found["labels"]
    assert found["input_ids"][first : last + 1] == [D, E, 11, 12, 13]


def test_the_best_span_lies_in_the_context_and_runs_forward() -> None:
    bound = task()
    (batch,) = batches_of(bound, bound.encode(rows(asked("c d e f", "d e"))), 8)
    logits = torch.zeros(1, 2, 9)
    logits[0, 0, [0, 1, 6]] = torch.tensor([9.0, 8.0, 4.0])  # [CLS] and a word of the question do not answer
    logits[0, 1, [5, 7]] = torch.tensor([5.0, 4.0])  # the end before the start does not either
    scores = bound.read(logits, batch).scores()
    assert scores.predicted.tolist() == [6, 7]
    assert scores.reference.tolist() == [5, 6]
    assert scores.correct.tolist() == [0.0]
    assert scores.overlap.tolist() == [pytest.approx(0.5)], "one of two words: e of 'e f', of 'd e'"


def test_the_best_of_all_right_answers_counts() -> None:
    bound = task()
    (batch,) = batches_of(bound, bound.encode(rows(asked("c d e f", "d e", "e f", "f"))), 8)
    logits = torch.zeros(1, 2, 9)
    logits[0, 0, 6], logits[0, 1, 7] = 5.0, 5.0
    metrics = bound.compute_metrics(bound.read(logits, batch).scores())
    assert metrics == {"exact_match": 1.0, "word_f1": 1.0}


def test_outputs_that_are_no_numbers_answer_nothing() -> None:
    bound = task()
    (batch,) = batches_of(bound, bound.encode(rows(asked("c d e f", "d e"))), 8)
    scores = bound.read(torch.full((1, 2, 9), torch.nan), batch).scores()
    assert (scores.predicted.tolist(), scores.correct.tolist(), scores.overlap.tolist()) == ([-1, -1], [0.0], [0.0])


@pytest.mark.parametrize(
    ("predicted", "right", "exact", "overlap"),
    [
        ("The Cat!", "cat", True, 1.0),
        ("a big cat", "the cat", False, 2 / 3),  # one word of two, one of one
        ("red red red", "red red blue", False, 2 / 3),  # red counts twice
        ("dog", "cat", False, 0.0),
        ("theory of an atom", "theory of atom", True, 1.0),
        ("U.S.", "us", True, 1.0),
    ],
)
def test_answers_are_compared_as_squad_does(predicted: str, right: str, exact: bool, overlap: float) -> None:
    assert (normal(predicted) == normal(right)) == exact
    assert word_f1(predicted, right) == pytest.approx(overlap)


def test_texts_survive_the_split_of_a_batch() -> None:
    """Some context has as many characters as the longest sequence has tokens."""
    bound, model = task(), reader()
    data = rows(*(asked(" ".join("cdefghij"[:count]), "c", "c") for count in (8, 1, 2, 6, 1, 1, 2, 1)))
    (batch,) = batches_of(bound, bound.encode(data), 8)
    parts = split_by_length(batch)
    assert len(parts) > 1
    with torch.no_grad():
        whole, split = bound.readout(model, batch).scores(), [bound.readout(model, part).scores() for part in parts]
    assert sum(scores.overlap.sum() for scores in split) == pytest.approx(whole.overlap.sum())


def test_characters_of_any_plane_come_back() -> None:
    context = "a \U0001f600 b é c"
    (batch,) = batches_of(task(), task().encode(rows(asked(context, "é"))), 8)
    logits = torch.zeros(1, 2, batch["input_ids"].shape[1])
    logits[0, 0, 7], logits[0, 1, 7] = 9.0, 9.0
    assert task().read(logits, batch).scores().correct.tolist() == [1.0]


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ({"text": [], "answer_start": []}, "there must be an answer, .* got 0 answers and 0 starts in row 1"),
        ({"text": ["d"], "answer_start": [0]}, "answers must stand in the context .* got 'd' at 0 in row 1"),
        (
            {"text": ["d", "e"], "answer_start": [2]},
            "there must be an answer, and a start for each, got 2 answers and 1 starts in row 1",
        ),
    ],
)
def test_answers_that_are_not_in_the_context_are_refused(answers: dict[str, Any], message: str) -> None:
    data = rows(asked("c d", "d"), {**asked("c d", "d"), "answers": answers})
    with pytest.raises(ValueError, match=f"split 'train', column 'answers': {message}"):
        task().check(data, "train")


def test_answers_of_another_form_are_refused() -> None:
    data = Dataset.from_dict({"question": ["a"], "context": ["b c"], "answers": ["c"]})
    with pytest.raises(ValueError, match=r"answers must be {text: \[...\], answer_start: \[...\]}, got string"):
        task().check(data, "train")


def test_a_question_that_leaves_no_room_is_refused() -> None:
    with pytest.raises(ValueError, match="question and answer must fit into 6 tokens, in row 1 they do not"):
        task(max_length=6).encode(rows(asked("c d e", "d"), asked("c d e", "d", question="a b c d")))


def test_another_head_is_refused() -> None:
    model = reader()
    model.config.num_labels = 3
    with pytest.raises(ValueError, match="num_labels must be 2, for the start and the end of an answer, got 3"):
        task_of(model, make_tokenizer("pair"))
