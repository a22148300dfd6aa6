import numpy as np
import pandas as pd
import pytest

from hf_mabprune.evaluation.groups import Measure, by_length, groups_of, measure_of, worse_probability


def of_hits(dense: list[int], pruned: list[int]) -> Measure:
    return Measure("accuracy", True, np.array(dense, dtype=float), np.array(pruned, dtype=float))


def examples(count: int, **columns: object) -> pd.DataFrame:
    return pd.DataFrame({"tokens": [7] * count, "kl": [0.1] * count, "changed": [0.0] * count, **columns})


def test_the_exact_test_of_hits_counts_answers_that_turned() -> None:
    """Of 6 answers that turned 5 were lost: 7 of the 64 ways that fair coins can fall have as many or more."""
    lost = np.array([1.0] * 5 + [-1.0] + [0.0] * 100)
    assert worse_probability(lost, of_hits=True) == pytest.approx(7 / 64)
    assert worse_probability(-lost, of_hits=True) == pytest.approx(63 / 64)


def test_the_signed_rank_test_sees_size_and_sign() -> None:
    """All of 5 are worse: one of the 32 ways to give signs to five ranks."""
    lost = np.array([0.1, 0.2, 0.3, 0.4, 0.5])
    assert worse_probability(lost, of_hits=False) == pytest.approx(1 / 32)
    assert worse_probability(-lost, of_hits=False) == pytest.approx(1)


@pytest.mark.parametrize("of_hits", [True, False])
def test_what_has_not_moved_is_no_worse(of_hits: bool) -> None:
    assert worse_probability(np.array([0.0, np.nan]), of_hits) == 1
    assert worse_probability(np.empty(0), of_hits) == 1


def test_the_class_that_pays_is_found_and_the_other_is_not() -> None:
    """All of 20 negatives are lost, and no positive; both p-values are corrected together."""
    table = examples(40, target=[0] * 20 + [1] * 20)
    bad, good = groups_of(table, of_hits([1] * 40, [0] * 20 + [1] * 20), ["negative", "positive"], {})
    assert (bad.kind, bad.name, bad.examples, bad.dense, bad.pruned) == ("class", "negative", 20, 1, 0)
    assert bad.probability == pytest.approx(0.5**20) and bad.corrected == pytest.approx(2 * 0.5**20) and bad.worse
    assert (good.name, good.probability, good.worse) == ("positive", 1, False)


def test_a_single_doubt_among_many_groups_is_no_finding() -> None:
    """p = 1/32 alone would be one; beside nine others it is not."""
    values = [f"slice {number // 5}" for number in range(50)]
    found = groups_of(examples(50), of_hits([1] * 50, [0] * 5 + [1] * 45), None, {"source": values})
    assert len(found) == 10 and found[0].probability == pytest.approx(1 / 32)
    assert found[0].corrected == pytest.approx(10 / 32) and not any(group.worse for group in found)


def test_lengths_are_cut_into_quarters_that_hold_every_example_once() -> None:
    names, order = by_length(pd.Series([3, 3, 4, 5, 9, 9, 12, 40]))
    assert order == ["3 tokens", "4 to 5 tokens", "9 tokens", "12 to 40 tokens"]
    assert names.tolist() == [name for name in order for _ in range(2)]


def test_only_the_largest_of_many_slices_are_compared() -> None:
    values = [str(number) for number in range(30) for _ in range(1 + (number >= 20))]
    found = groups_of(examples(40), of_hits([1] * 40, [1] * 40), None, {"source": values})
    assert len(found) == 12 and {group.name for group in found} >= {str(number) for number in range(20, 30)}


def test_the_measure_is_what_says_most_of_a_task() -> None:
    columns = {"dense_loss": [1.0], "pruned_loss": [2.0], "dense_correct": [1.0], "pruned_correct": [0.0]}
    assert measure_of(examples(1, **columns), "nats", by_loss=False).name == "accuracy"
    by_loss = measure_of(examples(1, **columns), "nats", by_loss=True)
    assert (by_loss.name, by_loss.greater_is_better, by_loss.lost.tolist()) == ("loss (nats)", False, [1])
    ranked = measure_of(examples(1, dense_rank=[1.0], pruned_rank=[4.0], **columns), "nats", by_loss=False)
    assert (ranked.name, ranked.lost.tolist()) == ("reciprocal rank", [0.75])
    read = measure_of(examples(1, dense_overlap=[1.0], pruned_overlap=[0.5], **columns), "nats", by_loss=False)
    assert (read.name, read.lost.tolist(), read.of_hits) == ("word F1", [0.5], False)
    alone = measure_of(examples(1), "nats", by_loss=False)
    assert (alone.name, alone.lost.tolist()) == ("distance from the dense model", [0.1])
