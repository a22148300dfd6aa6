"""Findings of the interpretability study on cells whose effects are planted; and the page that is made of them."""

import math
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from research.studies.interpretability.claims import (
    BEST,
    HIGH,
    ITERATIVE,
    MATCH,
    NO_RELATION,
    all_tests,
    final_verdicts,
    relations,
)
from research.studies.interpretability.estimates import (
    HELD,
    NOT_DECIDABLE,
    NOT_HELD,
    Estimate,
    correlation,
    larger,
    over_seeds,
    unrelated,
)
from research.studies.interpretability.page import page_text, write_page
from research.studies.interpretability.protocol import (
    AS_CUT,
    CONNECTION,
    EQUAL,
    FREE,
    GOOGLENET,
    ONE_SHOT,
    QUICK,
    STRUCTURED,
    UNEQUAL,
    UNSTRUCTURED,
    Protocol,
)
from research.studies.interpretability.rows import TRAINED_LONG, TRAINED_ON, UNPRUNED, UNTRAINED, Row

PROTOCOL = replace(QUICK, seeds=3, rates=(0.2, 0.4, 0.6, 0.8))
EXTRA = {AS_CUT: -0.3, ONE_SHOT: 0.0, EQUAL: 0.0, UNEQUAL: 0.1}  # accuracy of schedules
OF_KIND = {STRUCTURED: -0.1, UNSTRUCTURED: 0.0, CONNECTION: -0.05, FREE: 0.05}
JITTER = (-0.002, 0.0, 0.002)  # of seeds


def planted() -> Iterator[Row]:
    """Equal schedules are equal, more training brings 0.1; only what may grow back is best; MIS falls with the rate
    for structured pruning and for nothing else."""
    for seed, jitter in enumerate(JITTER):
        one = Row(network=GOOGLENET, similarity="made up", same_class=0.3, seed=seed, schedule="", units=10)
        for schedule, epochs, accuracy, mis in (
            (UNPRUNED, 0, 0.6, 0.54),
            (TRAINED_ON, 2, 0.65, 0.54),
            (TRAINED_LONG, 4, 0.75, 0.54),
            (UNTRAINED, 0, 0.1, 0.535),
        ):
            yield replace(
                one, schedule=schedule, epochs=epochs, accuracy=accuracy + jitter, mis=mis, solved=0.8,
                shuffled=0.5, shuffled_error=0.001, mis_all=mis, mis_before=0.54, mis_divided=0.8,
            )  # fmt: skip
        for kind, of_kind in OF_KIND.items():
            for schedule, extra in EXTRA.items():
                for at, rate in enumerate(PROTOCOL.rates):
                    accuracy = 0.12 + jitter if (schedule, rate) == (AS_CUT, 0.8) else 0.58 + of_kind + extra + jitter
                    wave = 0.0004 * (1, -1, -1, 1)[at]  # without a trend
                    mis = 0.54 + (-0.02 * rate if kind == STRUCTURED else 0) + wave + jitter / 20
                    yield replace(
                        one, kind=kind, schedule=schedule, rate=rate, epochs={AS_CUT: 0, UNEQUAL: 4}.get(schedule, 2),
                        accuracy=accuracy, mis=mis, solved=0.8 - (mis - 0.54), mis_all=mis, mis_before=0.54,
                        shuffled=0.5, shuffled_error=0.001, mis_divided=0.8, gone=int(5 * rate), cut=rate,
                        zeros=0.0 if kind == FREE else rate,
                    )  # fmt: skip


@pytest.fixture(scope="module")
def cells() -> pd.DataFrame:
    return pd.DataFrame([asdict(row) for row in planted()])


def test_findings_that_are_planted_are_found(cells: pd.DataFrame) -> None:
    found = {(test.finding, test.reading): test for test in all_tests(cells, GOOGLENET)}
    by_words = {
        finding: {
            reading: (test.estimate.value, test.verdict)
            for (named, reading), test in found.items()
            if named == finding
        }
        for finding in (ITERATIVE, BEST, MATCH, NO_RELATION, HIGH)
    }
    equal, unequal, longer = by_words[ITERATIVE].values()
    assert equal == (pytest.approx(0), NOT_HELD) and unequal == (pytest.approx(0.1), HELD)
    assert longer == (pytest.approx(0.1), "")

    held, free = by_words[BEST].items()
    assert held[1] == (pytest.approx(-0.05), NOT_HELD) and "50% of the weights zero at the end" in held[0]
    assert free[1] == (pytest.approx(0.05), HELD) and "not held, 0% of the weights zero" in free[0]

    verdicts = {reading.split(", ", 1)[1]: verdict for reading, (_, verdict) in by_words[MATCH].items()}
    assert [verdicts[f"{kind}, less that of the unpruned network as it was"] for kind in OF_KIND] == [
        NOT_HELD, HELD, HELD, HELD,
    ]  # fmt: skip
    assert verdicts[f"{UNSTRUCTURED}, less that of the unpruned network trained as long"] == NOT_HELD

    assert by_words[NO_RELATION][f"correlation of rate and MIS, {STRUCTURED}, without it"][1] == NOT_HELD
    assert by_words[NO_RELATION][f"correlation of rate and MIS, {UNSTRUCTURED}, without it"][0] == pytest.approx(
        0, abs=1e-6
    )
    pruned, fresh = by_words[HIGH].items()
    assert "12 pruned cells" in pruned[0] and pruned[1][1] == HELD
    assert fresh[1] == (pytest.approx(0.035 / 0.04), HELD)
    final = final_verdicts(list(found.values()))
    assert final[ITERATIVE] == f"{NOT_HELD} / {HELD}" and final[HIGH] == HELD


def test_the_unpruned_network_counts_once_a_kind_and_seed(cells: pd.DataFrame) -> None:
    counts = {words: found.count for words, found in relations(cells, GOOGLENET)}
    retrained = 3 * 4 * 3 * 4  # seeds, kinds, schedules, rates
    assert counts["all kinds, without it"] == retrained
    assert counts["all kinds, the unpruned network once a kind"] == retrained + 4 * 3
    assert counts[f"{STRUCTURED}, with it"] == retrained // 4 + 3


def test_scores_are_compared_with_the_unpruned_network_of_the_same_seed(cells: pd.DataFrame) -> None:
    moved = cells.copy()
    moved["mis"] += 0.1 * moved["seed"]
    for (words, before), (_, after) in zip(relations(cells, GOOGLENET), relations(moved, GOOGLENET), strict=True):
        assert after.value == pytest.approx(before.value, abs=1e-6), words


def test_intervals_and_what_they_decide() -> None:
    found = over_seeds([1.0, 2.0, 3.0])
    assert (found.value, found.high - found.value) == (2.0, pytest.approx(4.303 / math.sqrt(3), abs=1e-3))
    assert math.isnan(over_seeds([1.0]).low) and over_seeds([1.0, math.nan]).count == 1
    assert str(over_seeds([])) == "-" and over_seeds([0.5]).plus_minus() == "0.500"
    assert over_seeds([0.5, 0.51]).plus_minus(4) == "0.5050 ± 0.0635"
    # Fisher's interval of r = 0.5 over 28 points: tanh(atanh(0.5) -+ 1.96 / 5).
    x = np.repeat([-1.0, 1.0], 14)
    y = np.concatenate([[1.0] * 4 + [-1.0] * 10 + [1.0] * 11 + [-1.0] * 3])
    estimate = correlation(list(x), list(y))
    assert estimate.low == pytest.approx(math.tanh(math.atanh(estimate.value) - 1.96 / 5), abs=1e-3)
    assert math.isnan(correlation([1, 1, 1, 1], [1, 2, 3, 4]).value)

    def of(low: float, high: float) -> Estimate:
        return Estimate((low + high) / 2, low, high, 3)

    assert [larger(of(*ends)) for ends in ((0.01, 0.2), (-0.2, 0.005), (-0.1, 0.1), (0.001, 0.005))] == [
        HELD, NOT_HELD, NOT_DECIDABLE, HELD,
    ]  # fmt: skip
    assert larger(over_seeds([0.4])) == NOT_DECIDABLE
    assert [unrelated(of(*ends)) for ends in ((-0.2, 0.2), (0.1, 0.4), (-0.5, 0.2))] == [
        HELD, NOT_HELD, NOT_DECIDABLE,
    ]  # fmt: skip


def test_the_page_says_what_the_cells_say(cells: pd.DataFrame, tmp_path: Path) -> None:
    said = write_page(cells, tmp_path / "page.md", PROTOCOL, ["## One unit\n\nof many"])
    text = (tmp_path / "page.md").read_text()
    assert f"{ITERATIVE}: {NOT_HELD} / {HELD}" in said
    assert f'| "{HIGH}" | **{HELD}** |' in text and "## One unit\n\nof many" in text
    assert "made with" not in text and "figures of the quick setting" not in text
    assert f"| {FREE} | {ONE_SHOT} | 0.8 | 2 | 0.630 ± 0.005 | 0.5404 ± 0.0002 |" in text
    assert "| 80.0% | 0.0% |" in text and "0.5 within the 95% interval of 100%" in text
    for figure in ("rates", "accuracy"):
        assert f"(figures/interpretability-{figure}-googlenet.png)" in text
        assert (tmp_path / "figures" / f"interpretability-{figure}-googlenet.png").stat().st_size > 10_000
    assert "figures of the quick setting" in page_text(cells, QUICK, [])


def test_a_protocol_is_checked_and_read_back() -> None:
    assert Protocol.of(asdict(QUICK)) == QUICK and QUICK.longest == 4
    with pytest.raises(ValueError, match=r"similarity must be one of self_supervised, .*, got 'clip'"):
        Protocol(similarity="clip")
    with pytest.raises(ValueError, match="20 tasks of 9 references and a query take 400 inputs, got 300"):
        Protocol(probes=300)
