"""Statistics of the quality benchmark: those of scipy and scikit-posthocs, and what is left out of them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scikit_posthocs
from scipy import stats

from research.benchmarks import quality_report, statistics
from research.benchmarks.specs import PlannedSpec
from research.benchmarks.suite import Suite
from tests.research.suites import SUITE
from tests.seeds import moved


def rows_of(scores: dict[str, list[float]], **columns: Any) -> pd.DataFrame:
    """Rows of methods -> a score for each data set, at two targets and two seeds around it."""
    lines = []
    for method, values in scores.items():
        for task, value in enumerate(values):
            for at, step in ((0.5, 0.0), (0.7, -0.1)):
                for seed, noise in ((0, -0.01), (1, 0.01)):
                    line = {"task": f"t{task}", "target": f"heads-{at}", "family": "heads", "sparsity": at}
                    line |= {"method": method, "compensation": "none", "seed": seed, "metric": "accuracy"}
                    score = value + step + noise
                    line |= {"retained": score, "mean_kl": 1 - score, "value": score, "dense": 1.0, "chance": 0.5}
                    line |= {"model": "m", "dense_loss": 0.1, "parameters": 100 * (1 - at), "plan": ""}
                    line |= {"greater_is_better": True, "allocation": "own", "held_out_kl": 1 - score}
                    line |= {"search_seconds": 1.0, "pulls": 1, "forward_tokens": 1, "backward_tokens": 1}
                    lines.append(line | columns)
    return pd.DataFrame(lines)


RNG = np.random.default_rng(moved(0))
SCORES = {name: list(RNG.normal(mean, 0.05, 9)) for name, mean in (("a", 0.8), ("b", 0.75), ("c", 0.7), ("d", 0.6))}


def test_friedman_and_nemenyi_are_those_of_the_libraries() -> None:
    table = statistics.score_table(rows_of(SCORES), "retained")
    expected = np.array(list(SCORES.values())).T - 0.05  # the mean over targets and seeds
    np.testing.assert_allclose(table, expected)
    ranks = statistics.rank_table(table, greater_is_better=True)
    np.testing.assert_array_equal(ranks, stats.rankdata(-expected, axis=1))
    found = statistics.friedman(table)
    assert found.chi_square == stats.friedmanchisquare(*table.to_numpy().T).statistic
    # Iman and Davenport's F is that of a two-way analysis of variance of the ranks.
    squares = 9 * ((ranks.mean() - 2.5) ** 2).sum()
    rest = ((ranks - ranks.mean()) ** 2).to_numpy().sum()  # rows of ranks all have the same mean
    assert found.f == pytest.approx((squares / 3) / (rest / 24))
    assert found.p == pytest.approx(stats.f.sf(found.f, 3, 24))
    assert found.difference == pytest.approx(2.569 * np.sqrt(4 * 5 / (6 * 9)), rel=1e-3)  # Demsar 2006, table 5
    np.testing.assert_allclose(statistics.nemenyi(table), scikit_posthocs.posthoc_nemenyi_friedman(table.to_numpy()))


def test_few_data_sets_or_methods_get_no_test() -> None:
    with pytest.raises(ValueError, match="at least 3 methods and 2 data sets, got 2 and 9"):
        statistics.friedman(statistics.score_table(rows_of({name: SCORES[name] for name in "ab"}), "retained"))


def planned(*pairs: tuple[str, str, str]) -> list[Any]:
    given = [{"method": one, "against": other, "claim": claim} for one, other, claim in pairs]
    methods = {name: {"criterion": "random"} for name in "abcd"}
    return list(Suite.model_validate({**SUITE, "methods": methods, "planned": given}).planned)


def test_planned_comparisons_are_wilcoxon_with_holm() -> None:
    pairs = planned(("a", "b", "better"), ("a", "d", "better"), ("b", "a", "not_worse"))
    found = statistics.compare_planned(rows_of(SCORES), pairs, "retained", margin=0.02)
    scores = {name: np.array(values) for name, values in SCORES.items()}
    raw = [stats.wilcoxon(scores["a"] - scores[other]).pvalue for other in "bdb"]
    np.testing.assert_allclose(found["p"], raw)
    order = np.argsort(raw[:2], kind="stable")
    holm = np.maximum.accumulate(np.array(raw)[order] * [2, 1]).clip(max=1)
    np.testing.assert_allclose(found["holm"].to_numpy()[order], holm)
    assert np.isnan(found["holm"][2]), "a claim that no p-value decides"
    gains = scores["a"] - scores["b"]
    assert found["difference"][0] == pytest.approx(gains.mean())
    assert (found["won"][0], found["lost"][0]) == (2 * (gains > 0).sum(), 2 * (gains < 0).sum())  # at two targets
    assert found["worse"][2] == 2 * (gains > 0.02).sum() and not found["holds"][2]
    assert found["holds"][1]


def test_the_divergence_is_better_where_it_is_lower() -> None:
    found = statistics.compare_planned(rows_of(SCORES), planned(("a", "d", "better")), "mean_kl", margin=0.02)
    assert found["difference"][0] > 0 and found["holds"][0]


def test_pairs_without_rows_are_left_open() -> None:
    found = statistics.compare_planned(rows_of({"a": SCORES["a"]}), planned(("a", "b", "better")), "retained", 0.02)
    assert found["holds"][0] is None


def test_equal_methods_are_no_evidence() -> None:
    same = rows_of({"a": SCORES["a"], "b": SCORES["a"]})
    found = statistics.compare_planned(same, planned(("a", "b", "better")), "retained", 0.02)
    assert found["p"][0] == 1.0 and found["tied"][0] == 18 and not found["holds"][0]


def test_only_points_that_all_methods_have_are_averaged() -> None:
    rows = rows_of(SCORES)
    partial = rows[~((rows["method"] == "a") & (rows["target"] == "heads-0.7"))]
    table = statistics.score_table(partial, "retained")
    np.testing.assert_allclose(table["b"], SCORES["b"])


def losses_of(method: str, means: dict[str, list[float]], spread: float = 0.1) -> pd.DataFrame:
    """Rows of data sets -> a mean loss for each seed, with the losses of 50 test examples around it."""
    rng, lines = np.random.default_rng(moved(1)), []
    for task, of_seeds in means.items():
        for seed, mean in enumerate(of_seeds):
            losses = (4 + mean + rng.normal(0, spread, 50)).tolist()
            line = {"task": task, "target": "experts-0.5", "compensation": "none", "method": method, "seed": seed}
            lines.append(line | {"losses": json.dumps(losses)})
    return pd.DataFrame(lines)


PAIR = [PlannedSpec(method="a", against="b")]


def test_losses_are_compared_in_pairs_over_data_sets_draws_and_examples() -> None:
    other = losses_of("b", {"first": [0.0, 0.0, 0.0], "second": [0.0, 0.0, 0.0]})
    lower = losses_of("a", {"first": [-0.1, -0.1, -0.1], "second": [-0.3, -0.3]})
    (found,) = statistics.compare_losses(pd.concat([lower, other]), PAIR).to_dict("records")
    assert (found["data_sets"], found["draws"], found["target"]) == (2, 5, "experts-0.5")
    assert found["difference"] == pytest.approx(-0.2), "the examples' own losses cancel, and data sets count alike"
    assert -0.301 < found["low"] < -0.2 < found["high"] < -0.099, "what data sets differ by is in the interval"


def test_a_pair_that_shares_no_draw_has_no_line() -> None:
    rows = pd.concat([losses_of("a", {"first": [0.0]}), losses_of("b", {"second": [0.0]})])
    assert statistics.compare_losses(rows, PAIR).empty


def test_the_area_is_the_mean_height() -> None:
    areas = statistics.area_under_curve(rows_of(SCORES)).set_index(["task", "method"])["area"]
    assert areas["t3", "b"] == pytest.approx(SCORES["b"][3] - 0.05)


def test_data_sets_near_chance_are_marked_and_left_out(tmp_path: Path) -> None:
    rows = rows_of(SCORES)
    rows.loc[rows["task"] == "t4", "chance"] = 0.96
    language = ["metric", "greater_is_better", "dense", "chance"]
    rows.loc[rows["task"] == "t5", language] = ["perplexity", False, 60.0, 62.0]
    rows.loc[rows["task"] == "t6", language] = ["perplexity", False, 4000.0, 200.0]  # worse than knowing nothing
    rows.loc[rows["task"] == "t7", language] = ["perplexity", False, 60.0, 600.0]
    weak = statistics.near_chance(rows, 0.05)
    assert list(weak[weak].index) == ["t4", "t5", "t6"]
    methods = {name: {"criterion": "random"} for name in SCORES}
    suite = Suite.model_validate({**SUITE, "methods": methods, "planned": []})
    report = quality_report.make_report(suite, rows, len(rows))
    assert "t4: accuracy, dense 1 (near chance)" in report.text
    assert list(report.tables["ranks_retained_none"].index) == [f"t{task}" for task in (0, 1, 2, 3, 7, 8)]
    report.save(tmp_path)
    assert (tmp_path / "ranks_retained_none.png").stat().st_size > 0
