import numpy as np
import pytest

from hf_mabprune.tasks.entities import common_spans, read_tags
from tests.seeds import moved

NAMES = ["O", "B-A", "I-A", "E-A", "S-A", "B-B", "I-B", "E-B", "S-B"]


def numbers(tags: str) -> np.ndarray:
    return np.array([NAMES.index(tag) for tag in tags.split()])


def common(predicted: str, right: str, lengths: list[int] | None = None) -> tuple[int, int, int]:
    right_numbers = numbers(right)
    sizes = np.array(lengths or [len(right_numbers)])
    return common_spans(numbers(predicted), right_numbers, sizes, read_tags(NAMES))


@pytest.mark.parametrize(
    ("predicted", "counts"),
    [
        ("B-A I-A O B-B", (2, 2, 2)),
        ("B-A O O B-B", (2, 2, 1)),  # a span too short
        ("B-A I-A I-A B-B", (2, 2, 1)),  # too long
        ("B-B I-B O B-B", (2, 2, 1)),  # of another kind
        ("I-A I-A O I-B", (2, 2, 2)),  # begun without a B
        ("B-A E-A O S-B", (2, 2, 2)),  # the same spans in other letters
        ("B-A B-A O O", (2, 2, 0)),  # two in the place of one
        ("O O O O", (0, 2, 0)),
    ],
)
def test_a_span_is_right_with_its_kind_and_both_ends(predicted: str, counts: tuple[int, int, int]) -> None:
    assert common(predicted, "B-A I-A O B-B") == counts


def test_no_span_goes_on_in_the_next_sentence() -> None:
    assert common("B-A I-A I-A", "B-A I-A I-A") == (1, 1, 1)
    assert common("B-A I-A I-A", "B-A I-A B-A", [2, 1]) == (2, 2, 2)


def test_a_class_that_is_no_tag_makes_each_of_its_words_a_span() -> None:
    noun, verb = 0, 1
    right, predicted = np.array([noun, noun, verb]), np.array([noun, verb, verb])
    assert common_spans(predicted, right, np.array([3]), read_tags(["NOUN", "VERB"])) == (3, 3, 2)


def test_a_word_without_a_prediction_is_of_no_span() -> None:
    assert common_spans(np.array([-1, 1]), np.array([1, 1]), np.array([2]), read_tags(NAMES)) == (1, 2, 1)


def spans_word_by_word(tags: list[str]) -> set[tuple[int, int, str]]:
    """One word after the other, by the rules of conlleval."""
    spans, begin, before, kind_before = set(), 0, "O", ""
    for place, tag in enumerate([*tags, "O"]):
        letter, kind = tag[0], tag[2:]
        ends = before in "ES" or (before in "BI" and letter in "BSO") or kind != kind_before
        if before != "O" and ends:
            spans.add((begin, place, kind_before))
        begins = letter in "BS" or (letter in "IE" and before in "OES") or kind != kind_before
        if letter != "O" and begins:
            begin = place
        before, kind_before = letter, kind
    return spans


def test_any_tags_are_counted_as_word_by_word() -> None:
    rng, tags = np.random.default_rng(moved(0)), read_tags(NAMES)
    for _ in range(50):
        lengths = rng.integers(1, 7, 5)
        predicted, right = rng.integers(0, len(NAMES), (2, lengths.sum()))
        ends = lengths.cumsum()[:-1]
        counts = np.zeros(3, dtype=int)
        for own, others in zip(np.split(predicted, ends), np.split(right, ends), strict=True):
            one, other = (spans_word_by_word([NAMES[number] for number in row]) for row in (own, others))
            counts += [len(one), len(other), len(one & other)]
        assert common_spans(predicted, right, lengths, tags) == tuple(counts)
