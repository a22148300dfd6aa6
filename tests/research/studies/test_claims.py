"""Claims, mistakes and the page of the study, on cells with planted differences."""

import gc
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import pytest

from research.studies.paper.claims import (
    HELD,
    NOT_DECIDABLE,
    NOT_HELD,
    WORDS,
    Claim,
    all_claims,
    search_shares,
    sizes,
    verdict,
)
from research.studies.paper.findings import findings, straw_man
from research.studies.paper.methods import Protocol
from research.studies.paper.mistakes import mistakes
from research.studies.paper.page import page_text, protocols_of
from research.studies.paper.plots import figures, retained
from research.studies.paper.rivals import SKLEARN_MLP
from research.studies.paper.rows import CLASSIFICATION, DEEP, DENSE, REGRESSION, TABLES, read_results
from research.studies.paper.statistics import View
from tests.research.studies.small_cells import PROTOCOL, small_cells

ROOT = Path(__file__).parents[3]
RESULTS, PAGE = ROOT / "research" / "studies" / "paper" / "results.parquet", ROOT / "docs" / "paper_study.md"


@pytest.fixture(autouse=True)
def no_garbage(monkeypatch: pytest.MonkeyPatch) -> None:
    """statsmodels collects garbage at every correction, which takes long in a process that has seen many tests."""
    monkeypatch.setattr(gc, "collect", lambda *_: 0)


def judged(gains: Mapping[str, float], suite: str, count: int) -> dict[str, Claim]:
    return {claim.words: claim for claim in all_claims(small_cells(gains, {suite: count})) if claim.suite == suite}


def test_a_verdict_needs_a_design_then_the_numbers_then_a_test() -> None:
    assert verdict(True, True, True) == HELD
    assert verdict(True, False, True) == NOT_HELD
    assert verdict(True, True, False) == verdict(False, True, True) == verdict(False, False, False) == NOT_DECIDABLE


def test_what_was_planted_holds() -> None:
    best, improves, effective = WORDS[CLASSIFICATION]
    spread = {"ucb1": 0.1, "random": -0.2}
    found = judged(spread, CLASSIFICATION, 15)
    assert found["significant differences between methods"].verdict == HELD
    assert found[best].verdict == HELD, "the five others share the ranks from 2 to 6"
    assert found[improves].verdict == found[effective].verdict == HELD
    assert "better on 15 of 15" in found[improves].why and "Holm p" in found[improves].why


def test_the_opposite_of_what_was_planted_does_not_hold() -> None:
    best, improves, effective = WORDS[CLASSIFICATION]
    found = judged({"ucb1": -0.3, "hedge": 0.1, "random": 0.0}, CLASSIFICATION, 15)
    assert found[best].verdict == found[improves].verdict == found[effective].verdict == NOT_HELD
    assert found[best].why.startswith("mean ranks hedge 1.00")


def test_few_settings_decide_nothing() -> None:
    for claim in judged({"ucb1": 0.1, "random": -0.2}, CLASSIFICATION, 2).values():
        assert claim.verdict == NOT_DECIDABLE or claim.words == "computationally practical", claim


def test_few_settings_are_said_to_be_few() -> None:
    assert "**Deep.** 3 settings are too few to tell the six policies apart." in findings(
        small_cells(suites={DEEP: 3})
    )
    assert "too few" not in findings(small_cells(suites={DEEP: 12}))


def test_rivals_are_matched_or_not() -> None:
    _, competitive, _ = WORDS[REGRESSION]
    assert judged({"ucb1": 0.1}, REGRESSION, 13)[competitive].verdict == HELD
    behind = judged({"ucb1": -0.3}, REGRESSION, 13)[competitive]
    assert behind.verdict == NOT_HELD and behind.why.endswith("none")


def test_deep_claims_are_about_two_policies_and_three_baselines() -> None:
    strongest, outperform, _ = WORDS[DEEP]
    gains = {"ucb1": 0.2, "thompson": 0.21, "exp3": -0.2, "softmax": -0.21, "hedge": -0.22, "epsilon_greedy": -0.23}
    found = judged(gains, DEEP, 120)
    assert found[strongest].verdict == HELD
    assert found[outperform].verdict == HELD and "significantly: ucb1, thompson" in found[outperform].why
    others = judged({"ucb1": 0.2, "hedge": 0.21}, DEEP, 40)
    assert others[strongest].verdict == NOT_HELD


def test_a_suite_without_cells_is_not_decidable() -> None:
    claims = all_claims(small_cells(suites={CLASSIFICATION: 3}))
    missing = [claim for claim in claims if claim.suite in (REGRESSION, DEEP)]
    assert len(missing) == 8 and {claim.why for claim in missing} == {"no cells of this suite"}
    assert {claim.verdict for claim in missing} == {NOT_DECIDABLE}


def test_a_search_is_compared_with_training() -> None:
    cells = small_cells(suites={CLASSIFICATION: 3})
    assert search_shares(cells).tolist() == [0.5] * 3, "100 pulls of 5 rows beside 1,000"
    costly = cells.assign(tokens=cells["tokens"].where(cells["method"] != "ucb1", 5000))
    practical = {
        claim.suite: claim.verdict for claim in all_claims(costly) if claim.words == "computationally practical"
    }
    assert practical == {CLASSIFICATION: NOT_HELD}


def test_mistakes_are_told_beside_what_is_right() -> None:
    cells = small_cells({"ucb1": -0.05, "hedge": -0.02}, {CLASSIFICATION: 15})
    same = (cells["variant"] == "same_split") & (cells["method"] == "ucb1")
    table = mistakes(cells.assign(score=cells["score"] + 0.2 * same)).set_index("mistake")
    line = table.loc["rewards and report on the same rows"]
    assert "place 2 of 6, hedge first" in line["done right"] and "place 1 of 6, ucb1 first" in line["with the mistake"]
    values = table.loc["critical value for 5 methods"]
    counts = [int(values[column].split()[0]) for column in ("done right", "with the mistake")]
    assert 0 < counts[0] < counts[1] and "31 methods" in values["done right"]
    assert "of 15 pairs" in table.loc["no test among the policies themselves", "done right"]


def test_designs_are_listed_with_their_sizes() -> None:
    table = sizes(small_cells(suites={CLASSIFICATION: 8})).set_index("design")
    assert table.loc["the six policies", ["methods", "settings", "largest"]].tolist() == [6, 8, 5]
    assert table.loc["the six policies", "critical"] == pytest.approx(2.67, abs=0.005)
    assert table.loc["all methods", "methods"] == 31


def test_what_is_left_is_less_the_dense_network() -> None:
    cells = small_cells({"ucb1": 0.1}, {REGRESSION: 4}, noise=0.0)
    table = retained(cells, View(REGRESSION))
    assert list(table) == list(PROTOCOL.fractions)
    assert table.loc["ucb1"].tolist() == pytest.approx([0.1, 0.1]) and table.loc["random", 0.5] == pytest.approx(-0.1)


def test_the_straw_man_is_found() -> None:
    cells = small_cells(suites={CLASSIFICATION: 4})
    own = (cells["method"] == SKLEARN_MLP) & (cells["setting"] == "classification-2")
    level = cells.assign(score=cells["score"].where(cells["method"] != SKLEARN_MLP, 0.7 + 0.01 * cells["draw"]))
    behind = level.assign(score=level["score"] + 0.3 * own)
    assert "on 4 of\n4 tables, and no further behind than that on 4. Behind: none" in straw_man(level)
    assert "on 3 of\n4 tables" in straw_man(behind) and "Behind: classification-2 0.700 of 1.005" in straw_man(behind)
    near = level.assign(chance=level["setting"] == "classification-3")
    assert "little to lose: classification-3." in straw_man(near)
    assert straw_man(level[level["method"] != SKLEARN_MLP]) == ""


def test_the_page_has_every_part_and_shows_every_figure() -> None:
    cells = small_cells(suites={CLASSIFICATION: 4, DEEP: 3})
    names = [name for name, _ in figures(cells)]
    kinds = ("ranks", "fractions", "cost")
    assert names == [f"paper-{kind}-{suite}" for suite in (CLASSIFICATION, DEEP) for kind in kinds]
    text = page_text(cells, names, {TABLES: PROTOCOL, DEEP: Protocol(fractions=(0.3,))})
    assert all(f"](figures/{name}.png)" in text for name in names) and text.count("![") == len(names)
    sections = [line for line in text.splitlines() if line.startswith("## ")]
    assert len(sections) == len(set(sections)) == 11
    for claim in all_claims(cells):
        assert f'| "{claim.words}" | {claim.suite} | **{claim.verdict}** | {claim.why} |' in text
    assert "| deep-0 | accuracy | 0.700 | yes | 2 |" in text and "deep 3 settings, 2 of 10 draws" in text
    uneven = page_text(
        cells[(cells["setting"] != "deep-0") | (cells["draw"] == 1)], [], {TABLES: PROTOCOL, DEEP: PROTOCOL}
    )
    assert "deep 3 settings, 1 to 2 of 2 draws" in uneven and "classification 4 settings, 2 of 2 draws" in uneven
    assert "10%, 50% of the hidden neurons" in text and "30% of the hidden neurons" in text and "{" not in text


@pytest.mark.skipif(not RESULTS.exists(), reason="no cells are stored")
def test_the_page_is_that_of_the_stored_cells() -> None:
    cells = read_results(RESULTS)
    assert RESULTS.stat().st_size < 1_000_000
    names = [
        f"paper-{kind}-{suite}" for suite in dict.fromkeys(cells["suite"]) for kind in ("ranks", "fractions", "cost")
    ]
    there = [name for name in names if (PAGE.parent / "figures" / f"{name}.png").is_file()]
    assert PAGE.read_text(encoding="utf-8") == page_text(cells, there, protocols_of(cells.attrs))


def test_a_dense_network_is_needed_for_nothing_but_its_own_comparisons() -> None:
    cells = small_cells(suites={CLASSIFICATION: 5})
    without: pd.DataFrame = cells[cells["method"] != DENSE]
    found = {claim.words: claim.verdict for claim in all_claims(without) if claim.suite == CLASSIFICATION}
    assert found[WORDS[CLASSIFICATION][1]] == NOT_DECIDABLE
