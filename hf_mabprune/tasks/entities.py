"""Spans of marked words: which there are in a row of tags, and how many two rows have in common.

A tag is a class name such as B-PER or I-PER: a letter for the place of the word in its span, and the kind of the span.
B begins one, I goes on with it, E ends it, S is one by itself; O is no span. As conlleval, the script of the CoNLL
2000 shared task, and the package seqeval count by default, a span also begins where another kind does, or where none
was before, whatever the letter says.

Symbols: M words, of all sentences one after the other; C classes.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

PLACES = "OBIES"  # the place of a word in its span
OUTSIDE, BEGIN, INSIDE, END, SINGLE = range(len(PLACES))


class Tags(NamedTuple):
    """The place and the kind that each class stands for, [C + 1] int64 each; the last entry, which class -1 finds, is
    that of no span."""

    places: NDArray[np.int64]
    kinds: NDArray[np.int64]


class Common(NamedTuple):
    """How many spans were predicted, how many there are, and how many of both are the same."""

    predicted: int
    right: int
    same: int


def read_tags(names: Sequence[str]) -> Tags:
    """Reads the names of all classes in their order; one without a letter and a dash is a span of one word."""
    places, kinds = [], []
    for name in names:
        letter, dash, kind = name.partition("-")
        marked = bool(dash) and letter in PLACES[1:]
        places.append(PLACES.index(letter) if marked else OUTSIDE if name == "O" else SINGLE)
        kinds.append(kind if marked else name)
    _, numbers = np.unique(kinds, return_inverse=True)
    return Tags(np.array([*places, OUTSIDE]), np.array([*numbers, -1]))


def common_spans(
    predicted: NDArray[np.int64], right: NDArray[np.int64], lengths: NDArray[np.int64], tags: Tags
) -> Common:
    """Counts spans; two are the same if first word, last word and kind are.

    Args:
        predicted: Predicted classes, [M].
        right: Right classes, [M].
        lengths: Words of each sentence; their sum is M.
        tags: What the classes stand for.
    """
    first = np.zeros(len(right) + 1, dtype=bool)  # words that begin a sentence
    first[lengths.cumsum() - lengths] = True
    (begins, ends), (right_begins, right_ends) = (_spans(classes, first[:-1], tags) for classes in (predicted, right))
    same = begins & right_begins & (ends == right_ends) & (tags.kinds[predicted] == tags.kinds[right])
    return Common(int(begins.sum()), int(right_begins.sum()), int(same.sum()))


def _spans(
    classes: NDArray[np.int64], first: NDArray[np.bool_], tags: Tags
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Tells which words begin a span, [M], and where the span of a word ends: the word behind its last, [M]."""
    places, kinds = tags.places[classes], tags.kinds[classes]
    before, kind_before = np.roll(places, 1), np.roll(kinds, 1)
    broken = first | np.isin(before, (OUTSIDE, END, SINGLE)) | (kinds != kind_before)
    begins = (places != OUTSIDE) & (broken | np.isin(places, (BEGIN, SINGLE)))
    stops = np.where(begins | first | (places == OUTSIDE), np.arange(len(places)), len(places))
    following = np.append(stops[1:], len(places))
    return begins, np.minimum.accumulate(following[::-1])[::-1]
