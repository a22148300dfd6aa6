"""Statistics of the study: what is averaged, and the numbers of scipy, scikit-posthocs and autorank."""

import numpy as np
import pandas as pd
import pytest
import scikit_posthocs
from autorank import autorank
from scipy import optimize, stats

from research.studies.paper.methods import PLANNED
from research.studies.paper.rivals import RIVALS, SKLEARN_MLP
from research.studies.paper.rows import CLASSIFICATION, DEEP, DENSE, KL, REGRESSION
from research.studies.paper.statistics import (
    SIX,
    Design,
    View,
    compare_pairs,
    critical_difference,
    detectable_difference,
    label,
    left_out,
    score_table,
    summary,
)
from tests.research.studies.small_cells import small_cells
from tests.seeds import moved

STORED = pd.DataFrame(  # five methods on eight settings
    [
        [0.81, 0.79, 0.80, 0.70, 0.75],
        [0.92, 0.93, 0.91, 0.90, 0.88],
        [0.65, 0.60, 0.61, 0.62, 0.55],
        [0.77, 0.76, 0.70, 0.71, 0.69],
        [0.84, 0.85, 0.83, 0.80, 0.79],
        [0.58, 0.52, 0.57, 0.50, 0.51],
        [0.99, 0.97, 0.98, 0.95, 0.96],
        [0.73, 0.71, 0.66, 0.69, 0.64],
    ],
    columns=list("abcde"),
)


def test_ranks_and_tests_are_those_of_the_libraries() -> None:
    design, (settings, methods) = Design(STORED), STORED.shape
    chi_square = stats.friedmanchisquare(*STORED.to_numpy().T).statistic
    f = (settings - 1) * chi_square / (settings * (methods - 1) - chi_square)
    assert design.test.f == pytest.approx(f)
    assert design.test.p == pytest.approx(stats.f.sf(f, methods - 1, (methods - 1) * (settings - 1)))
    assert design.test.p < 0.001
    pairs = scikit_posthocs.posthoc_nemenyi_friedman(STORED)
    np.testing.assert_allclose(design.pairs, pairs)
    ours = autorank(STORED, force_mode="nonparametric")
    assert design.test.difference == pytest.approx(ours.cd, rel=1e-4)  # from a table of critical values
    assert design.ranks.to_dict() == pytest.approx(ours.rankdf["meanrank"].to_dict())
    assert design.separated("a", "e") == (pairs["a"]["e"] < 0.05) and design.separated("a", "e")
    assert not design.separated("a", "b")
    assert design.separations("abe") == (2, 3)


def test_pairs_are_those_of_scipy_with_the_correction_of_holm() -> None:
    table = compare_pairs(STORED, [("a", "e"), ("b", "c"), ("a", "missing"), ("c", "d")])
    assert table["method"].tolist() == ["a", "b", "c"]
    raw = [stats.wilcoxon(STORED[one] - STORED[other]).pvalue for one, other in (("a", "e"), ("b", "c"), ("c", "d"))]
    assert table["p"].tolist() == pytest.approx(raw)
    order = np.argsort(raw)
    assert table["holm"][order[0]] == pytest.approx(3 * raw[order[0]])
    first = table.iloc[0]
    assert first["difference"] == pytest.approx((STORED["a"] - STORED["e"]).mean())
    assert 0 < first["low"] < first["difference"] < first["high"] and (first["won"], first["lost"]) == (8, 0)
    assert first["decidable"] and not compare_pairs(STORED[:5], [("a", "e")])["decidable"][0]


def test_ties_and_zeros_are_tested_as_scipy_does() -> None:
    rng = np.random.default_rng(moved(0))
    for count in (5, 8, 14):
        gains = rng.integers(-3, 4, size=(4, count)) / 10
        for row in gains[gains.any(axis=1)]:
            pairs = compare_pairs(pd.DataFrame({"a": row, "b": 0.0}), [("a", "b")])
            assert pairs["p"][0] == pytest.approx(stats.wilcoxon(row, zero_method="zsplit").pvalue), row


def test_methods_are_described_beside_the_dense_network() -> None:
    table = summary(STORED.rename(columns={"c": DENSE}))
    assert list(table.index) == ["a", "b", DENSE, "d", "e"] and table["median"]["a"] == pytest.approx(0.79)
    gains = STORED["a"] - STORED["c"]
    assert table["difference"]["a"] == pytest.approx(gains.mean())
    bounds = table.loc["a", ["low", "high"]].tolist()
    assert bounds[0] < gains.mean() < bounds[1] and (table.loc[DENSE, ["difference", "low", "high"]] == 0).all()


def test_what_a_design_could_have_found() -> None:
    assert critical_difference(8, 6) == pytest.approx(2.67, abs=0.005)
    assert critical_difference(8, 6) < detectable_difference(8, 6) < 5
    few = pd.DataFrame(np.random.default_rng(0).random((3, 20)))
    assert detectable_difference(3, 20) > 19 and not Design(few).decidable and Design(STORED).decidable


def test_draws_and_fractions_are_averaged_before_settings_are_ranked() -> None:
    cells = small_cells(suites={CLASSIFICATION: 3})
    table = score_table(cells, View(CLASSIFICATION), (*SIX, DENSE, "nothing of this name"))
    assert table.shape == (3, 7) and list(table) == [*SIX, DENSE]
    one = cells[(cells["setting"] == "classification-1") & (cells["method"] == "ucb1") & (cells["reward"] == "loss")]
    plain = one[(one["variant"] == "") & ~one["tuned"]]
    assert len(plain) == 4 and table.loc["classification-1", "ucb1"] == pytest.approx(plain["score"].mean())
    smallest = score_table(cells, View(CLASSIFICATION, True, (0.1,)), ("ucb1",))
    chosen = one[one["tuned"] & (one["fraction"] == 0.1)]
    assert len(chosen) == 2 and smallest.loc["classification-1", "ucb1"] == pytest.approx(chosen["score"].mean())
    wrong = score_table(cells, View(CLASSIFICATION, variant="cumulative"), ("ucb1",))
    mistaken = one[one["variant"] == "cumulative"]
    assert wrong.loc["classification-1", "ucb1"] == pytest.approx(mistaken["score"].mean())
    assert mistaken["draw"].unique().tolist() == [0]


def test_all_methods_are_those_that_every_setting_has() -> None:
    cells = small_cells(suites={REGRESSION: 3})
    everything = score_table(cells, View(REGRESSION))
    assert {*RIVALS, *SIX, DENSE, label("ucb1", KL), "kfac_obs"} <= set(everything) and SKLEARN_MLP not in everything
    large = (cells["setting"] == "regression-0") & (cells["method"] == "gaussian_process")
    fewer = score_table(cells[~large], View(REGRESSION))
    assert set(everything) - set(fewer) == {"gaussian_process"}


def test_an_r2_below_zero_counts_as_zero_and_an_accuracy_does_not_change() -> None:
    cells = small_cells(suites={REGRESSION: 2, CLASSIFICATION: 2})
    broken = cells.assign(score=cells["score"].where(cells["method"] != "ucb1", -7.0))
    assert (score_table(broken, View(REGRESSION), ("ucb1",)) == 0).all(axis=None)
    assert (score_table(broken, View(CLASSIFICATION), ("ucb1",)) == -7).all(axis=None)


def test_deep_settings_near_chance_are_left_out_of_ranks_and_tables_are_not() -> None:
    cells = small_cells(suites={DEEP: 3, CLASSIFICATION: 2})
    near = cells.assign(chance=cells["setting"].isin(["deep-1", "classification-1"]))
    assert left_out(near) == ["deep-1"]
    assert score_table(near, View(DEEP), SIX).index.tolist() == ["deep-0", "deep-2"]
    assert len(score_table(near, View(CLASSIFICATION), SIX)) == 2


SIMULATIONS = 200
DESIGNS = [(15, 7), (13, 7), (8, 6)]  # settings and methods


def _shift_for(difference: float, methods: int) -> float:
    """Finds the shift, up of one method and down of another, whose true difference of mean ranks is that asked for.

    In unit noise a method at +s is ahead of one at -s with probability Phi(2 s / sqrt 2), and of each of the others
    with Phi(s / sqrt 2); its mean rank is 1 + the sum of the chances that others are ahead.
    """

    def gap(shift: float) -> float:
        above, far = stats.norm.cdf(shift / np.sqrt(2)), stats.norm.cdf(2 * shift / np.sqrt(2))
        return float((2 * far - 1) + (methods - 2) * (2 * above - 1)) - difference

    return float(optimize.brentq(gap, 0, 20))


@pytest.mark.slow
@pytest.mark.parametrize(("settings", "methods"), DESIGNS)
def test_a_planted_difference_is_found_and_noise_is_not(settings: int, methods: int) -> None:
    rng, names = np.random.default_rng(settings), list("abcdefghij"[:methods])
    shift = np.zeros(methods)
    shift[0] = _shift_for(detectable_difference(settings, methods), methods)
    shift[1] = -shift[0]

    def study(means: np.ndarray) -> Design:
        return Design(pd.DataFrame(rng.normal(size=(settings, methods)) + means, columns=names))

    found = sum(study(shift).separated("a", "b") for _ in range(SIMULATIONS))
    assert found >= 0.8 * SIMULATIONS, found
    false = sum(study(0 * shift).test.p < 0.05 for _ in range(SIMULATIONS))
    nominal = stats.binomtest(false, SIMULATIONS).proportion_ci(1 - 0.05 / len(DESIGNS))  # of which none may miss
    assert nominal.low <= 0.05 <= nominal.high, false


def test_pairs_were_named_before() -> None:
    assert len(PLANNED) == len(set(PLANNED)) == 9 and ("ucb1", DENSE) in PLANNED
