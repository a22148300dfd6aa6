"""Widths rounded to multiples, worked out by hand."""

import numpy as np
import pytest

from hf_mabprune.selection.rounding import round_widths
from tests.problems import table
from tests.seeds import moved

# Round widths: two layers of eight blocks of 8; arms go in ascending order within each layer.
BLOCKS = table(neurons=[[8] * 8, [8] * 8])
ORDER = np.arange(16)


def kept_of(*counts: int) -> np.ndarray:
    """The last arms of each layer stay."""
    return np.concatenate([np.arange(8) >= 8 - count for count in counts])


@pytest.mark.parametrize(
    ("kept", "multiple", "min_units", "expected"),
    [
        ((3, 5), 16, 1, (2, 6)),  # 24 + 40: one goes down, the other up
        ((3, 5), 16, 32, (4, 4)),
        ((3, 3), 16, 1, (2, 4)),
        ((4, 2), 16, 1, (4, 2)),
        ((3, 5), 8, 1, (3, 5)),
        ((1, 1), 16, 1, (2, 2)),  # not to nothing
        ((3, 5), 32, 1, (4, 4)),
        ((8, 1), 64, 1, (8, 8)),
        ((3, 5), 16, 1000, (8, 8)),  # a floor above the width keeps the layer whole
    ],
)
def test_widths_move_to_multiples_and_keep_their_sum(
    kept: tuple[int, int], multiple: int, min_units: int, expected: tuple[int, int]
) -> None:
    rounded = round_widths(BLOCKS, ORDER, kept_of(*kept), multiple, min_units)
    assert np.array_equal(rounded, kept_of(*expected))


def test_layers_that_may_go_are_rounded_to_nothing_too() -> None:
    both, first = ("neuron.0", "neuron.1"), ("neuron.0",)
    for kept, may_go, expected in (((1, 7), both, (0, 8)), ((0, 4), both, (0, 4)), ((1, 1), first, (0, 2))):
        rounded = round_widths(BLOCKS, ORDER, kept_of(*kept), 16, 0, may_go=may_go)
        assert np.array_equal(rounded, kept_of(*expected))
    assert np.array_equal(round_widths(BLOCKS, ORDER, kept_of(1, 7), 16, 1, may_go=both), kept_of(2, 6))


def test_the_arms_removed_last_come_back_first() -> None:
    order = np.array([3, 1, 0, 2, 7, 5, 4, 6])
    arms = table(neurons=[[8] * 8])
    kept = np.isin(np.arange(8), [4, 6, 5])
    assert np.flatnonzero(round_widths(arms, order, kept, 32)).tolist() == [4, 5, 6, 7]
    assert np.flatnonzero(round_widths(arms, order, kept, 16)).tolist() == [4, 6]


def test_a_whole_layer_keeps_its_remainder() -> None:
    arms = table(neurons=[[8, 8, 4], [8, 8, 4]])
    order = np.array([2, 1, 0, 5, 4, 3])
    kept = np.array([True, True, True, True, False, False])
    rounded = round_widths(arms, order, kept, 16)
    assert rounded.tolist() == [True, True, True, True, True, False]


def test_tied_sites_are_left_as_they_are() -> None:
    arms = table(neurons=[[8] * 8] * 3)
    kept = np.concatenate([kept_of(3, 5), np.arange(8) >= 3])
    rounded = round_widths(arms, np.arange(24), kept, 16, tied=("neuron.0", "neuron.2"))
    widths = [int(rounded[rows].sum()) for _, rows in arms.groups()]
    assert widths == [3, 4, 5] or widths == [3, 6, 5]
    assert np.array_equal(rounded[:8], kept[:8]) and np.array_equal(rounded[16:], kept[16:])


def test_heads_are_not_rounded() -> None:
    arms = table(neurons=[[8] * 4], heads=[[2] * 4])
    kept = np.array([True, False, False, True, True, False, True, False])
    rounded = round_widths(arms, np.array([1, 2, 3, 0, 5, 7, 4, 6]), kept, 32)
    assert rounded.tolist() == [True, True, True, True, True, False, True, False]


@pytest.mark.parametrize("multiple", [4, 8, 12, 40])
def test_rounding_holds_for_any_selection(multiple: int) -> None:
    rng = np.random.default_rng(moved(multiple))
    arms = table(neurons=[[4] * 30] * 12)
    for _ in range(20):
        order = rng.permutation(len(arms))
        kept = np.ones(len(arms), dtype=bool)
        kept[order[: int(rng.integers(1, 200))]] = False
        rounded = round_widths(arms, order, kept, multiple, 4)
        sizes = [len(units) for units in arms.kept_units(rounded).values()]
        assert len(sizes) == 12 and all(size % multiple == 0 and size >= 4 for size in sizes)
        before, after = (arms.units[mask].sum() for mask in (kept, rounded))
        assert abs(after - before) <= multiple / 2
        place = np.argsort(order)
        for _, rows in arms.groups():
            gone, stay = rows[~rounded[rows]], rows[rounded[rows]]
            assert len(gone) == 0 or place[gone].max() < place[stay].min()
