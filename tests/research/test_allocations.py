"""Two allocations of a method: the one that counts is that of the lower divergence on held-out data."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from research.benchmarks import allocations
from research.benchmarks.suite import KEY


def row(method: str, allocation: str, held_out_kl: float, mean_kl: float = 0.1, **other: Any) -> dict[str, Any]:
    cell = {"task": "t", "target": "heads-0.5", "compensation": "none", "seed": 0, "retained": 1 - mean_kl}
    return cell | {"method": method, "allocation": allocation, "held_out_kl": held_out_kl, "mean_kl": mean_kl} | other


ROWS = pd.DataFrame(
    [
        row("a", "own", 0.2, 0.3),
        row("a", "equal", 0.1, 0.4),  # what is read on the test split decides nothing
        row("b", "own", 0.1, 0.1),
        row("b", "equal", 0.1, 0.2),  # as good: its own
        row("c", "own", np.nan, np.nan),
        row("c", "equal", 9.0, 9.0),
        row("d", "own", 0.5),  # ranks nothing
        row("a", "own", 0.1, 0.1, seed=1),
        row("a", "equal", 0.3, 0.3, seed=1),
    ]
)


def test_the_lower_held_out_divergence_counts_in_every_cell() -> None:
    assert allocations.taken(ROWS).tolist() == [False, True, True, False, False, True, True, True, False]


def test_the_summary_says_what_the_other_allocation_would_have_given() -> None:
    table = allocations.summary(ROWS.assign(taken=allocations.taken(ROWS))).xs("none", level="compensation")
    assert table.loc["a", ["own", "equal", "other_better"]].tolist() == [1, 1, 1]
    assert table.loc["a", "mean_kl"] == pytest.approx((0.4 + 0.1) / 2)
    assert table.loc["a", "mean_kl_other"] == pytest.approx((0.3 + 0.3) / 2)
    assert table.loc["a", "retained_other"] == pytest.approx(0.7)
    assert table.loc["d", ["own", "equal"]].tolist() == [1, 0] and np.isnan(table.loc["d", "mean_kl_other"])


def test_cells_without_one_of_their_allocations_do_not_count() -> None:
    wanted = ROWS[KEY].iloc[::-1]
    found = allocations.complete(ROWS[(ROWS["method"] != "b") | (ROWS["allocation"] == "own")], wanted)
    assert list(found["method"]) == ["a", "a", "d", "c", "c", "a", "a"]
    alone = wanted[wanted["allocation"] == "own"]
    assert list(allocations.complete(ROWS, alone)["method"]) == ["a", "d", "c", "b", "a"]


def test_both_are_shown_with_the_one_that_counts() -> None:
    shown = allocations.both_of(ROWS.assign(taken=allocations.taken(ROWS)), "mean_kl").droplevel(
        ["compensation", "target"]
    )
    assert shown["b"] == "0.1 / 0.2 own"
    assert shown["a"] == "0.2 / 0.35 equal 1, own 1"
    assert shown["d"] == "0.1 own"
