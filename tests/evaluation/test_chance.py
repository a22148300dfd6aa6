"""Whether a model is worse than an answer that takes none."""

from typing import Any

import numpy as np
import pytest

from hf_mabprune.evaluation.chance import below_chance
from hf_mabprune.tasks.scores import Scores
from tests.tasks.tiny_tasks import bert, chooser, llama, make_tokenizer, regressor, t5, task_of


def scores(predicted: Any, reference: Any, losses: Any = None, positions: Any = None) -> Scores:
    ones, one_each = np.ones(len(predicted)), np.ones(len(predicted), dtype=np.int64)
    return Scores(
        ones if losses is None else np.array(losses, dtype=float),
        one_each if positions is None else np.array(positions),
        np.array(predicted),
        np.array(reference),
        ones,
        one_each,
    )


def of_tokens(right: list[list[int]], predicted: list[list[int]]) -> Scores:
    """Scores of examples that have several answers each."""
    counts, ones = np.array([len(answers) for answers in right]), np.ones(len(right))
    return Scores(ones, counts, np.concatenate(predicted), np.concatenate(right), ones, counts)


@pytest.mark.parametrize("make", [bert, chooser])
def test_classes_are_compared_with_the_most_frequent_one(make: Any) -> None:
    task, right = task_of(make(), make_tokenizer("pair")), np.array([0, 1] * 30)
    below = below_chance(task, scores(1 - right, right))
    assert below is not None and below.how == "accuracy 0 is below the 0.5 of always answering class 0"
    assert "labels may be swapped" in below.meaning
    assert below_chance(task, scores(right, right)) is None
    assert below_chance(task, scores(np.zeros_like(right), right)) is None  # as good as chance is not below it
    often = np.array([1] * 50 + [0] * 10)
    assert below_chance(task, scores(np.zeros_like(often), often)) is not None


def test_examples_with_several_answers_are_what_is_independent() -> None:
    """A few long examples that are wrong throughout say less than their many tokens would."""
    task = task_of(bert(), make_tokenizer("pair"))
    right = [[0, 1, 0]] * 20
    below = below_chance(task, of_tokens(right, [[1, 0, 1]] * 20))
    assert below is not None and below.how == "accuracy 0 is below the 0.667 of always answering class 0"
    assert below_chance(task, of_tokens(right, right)) is None
    assert below_chance(task, of_tokens(right, [[0, 0, 0]] * 20)) is None
    long = [[0] * 100, [0] * 100, [0] * 100, [1] * 100]
    assert below_chance(task, of_tokens(long, [[1] * 100, [0] * 100, [0] * 100, [0] * 100])) is None
    assert below_chance(task, of_tokens([[0] * 100], [[1] * 100])) is None


def test_few_examples_decide_nothing() -> None:
    task = task_of(bert(), make_tokenizer("pair"))
    assert below_chance(task, scores([1, 0, 1], [0, 1, 0])) is None


def test_numbers_are_compared_with_their_mean() -> None:
    task, right = task_of(regressor(), make_tokenizer("pair")), np.linspace(0, 5, 20)
    assert below_chance(task, scores(right / 2 + 1, right)) is None
    against = below_chance(task, scores(5 - right, right))
    assert against is not None and "correlation" in against.how
    scaled = below_chance(task, scores(20 * right, right))
    assert scaled is not None and "of always answering the mean" in scaled.how and "scale" in scaled.meaning
    assert below_chance(task, scores(right, np.ones(20))) is None  # of labels that are all the same nothing is known
    assert below_chance(task, scores(np.full(20, np.nan), right)) is not None


@pytest.mark.parametrize(("make", "kind"), [(llama, "plain"), (t5, "end")])
def test_tokens_are_compared_with_the_whole_vocabulary(make: Any, kind: str) -> None:
    task = task_of(make(), make_tokenizer(kind))
    size = task.model_config.vocab_size
    loss = float(np.log(size))
    assert below_chance(task, scores([1, 1], [1, 1], [loss + 1, 0.1], [1, 9])) is None
    below = below_chance(task, scores([1, 1], [1, 1], [loss + 1, 0.1], [9, 1]))
    assert below is not None and f"{size} equally likely tokens" in below.how
    assert below_chance(task, scores([1], [1], [np.nan])) is not None
