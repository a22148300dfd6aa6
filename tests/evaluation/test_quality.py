"""What is said of a split where examples have several answers: examples are drawn, each with all of its answers."""

import numpy as np
import pytest
from accelerate import Accelerator

from hf_mabprune.evaluation.bounds import upper_mean, upper_share
from hf_mabprune.evaluation.quality import (
    Evaluation,
    changed_answers,
    evaluate,
    forward_of,
    paired_difference,
    resampled_metrics,
)
from hf_mabprune.tasks.scores import Scores
from tests.problems import problem
from tests.tasks.tiny_tasks import bert, make_tokenizer, task_of


def scores(answers: list[int], predicted: list[int]) -> Scores:
    """Scores of examples with so many answers each, of which class 1 is right everywhere."""
    counts, ones = np.array(answers), np.ones(len(answers))
    return Scores(ones, counts, np.array(predicted), np.ones(len(predicted), dtype=np.int64), ones, counts)


def test_answers_that_change_are_counted_by_example() -> None:
    """One of three answers, none of one, and both of two; the last example has none, and is left out."""
    small, dense = scores([3, 1, 2, 0], [0, 1, 1, 1, 0, 0]), scores([3, 1, 2, 0], [1] * 6)
    changed, bound = changed_answers(small, dense)
    assert changed == pytest.approx((1 / 3 + 0 + 1) / 3)
    assert bound == upper_mean(np.array([1 / 3, 0, 1]))


def test_a_single_answer_changes_or_does_not() -> None:
    small, dense = scores([1] * 4, [0, 1, 1, 0]), scores([1] * 4, [1, 1, 1, 0])
    assert changed_answers(small, dense) == (0.25, upper_share(1, 4))


def test_of_a_language_model_no_predictions_are_kept() -> None:
    model, task, batches, _ = problem("llama")
    found = evaluate(forward_of(model, task), task, batches, Accelerator(cpu=True), intervals=False)
    assert not found.scores.predicted.size and not found.scores.answers.any()
    assert found.metrics["perplexity"] == pytest.approx(np.exp(found.loss)) and found.scores.positions.all()


def test_a_paired_interval_resamples_examples_with_all_of_their_answers() -> None:
    """Within every example half the answers differ, so no resample of examples sees anything but a half."""
    task = task_of(bert(), make_tokenizer("pair"))
    lengths = [2, 4, 8, 2, 6]
    halves = [number % 2 for length in lengths for number in range(length)]
    seen = [scores(lengths, answers) for answers in ([1] * len(halves), halves)]
    right, half = (
        Evaluation(one, np.zeros(len(lengths)), task.compute_metrics(one), resampled_metrics(task, one))
        for one in seen
    )
    assert paired_difference("accuracy", right, half) == (0.5, 0.5, 0.5)
    assert half.intervals["accuracy"] == (0.5, 0.5)
