"""Rankings and tests over data sets, from rows of the quality benchmark. Pure: frames in, frames out.

A point is one operating point of one data set: a target, a compensation and a seed. Seeds and operating points are no
data sets: they are averaged before anything is ranked or tested (Demsar 2006, JMLR 7).
Symbols: N data sets (the column `task`), k methods.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import scikit_posthocs
from numpy.typing import NDArray
from scipy import stats
from scipy.integrate import trapezoid
from statsmodels.stats.multitest import multipletests

from hf_mabprune.evaluation.quality import RESAMPLES, percentiles
from research.benchmarks.specs import PlannedSpec

POINT = ["task", "target", "compensation", "seed"]
GREATER_IS_BETTER = {"retained": True, "mean_kl": False}  # what methods are ranked by


def near_chance(rows: pd.DataFrame, distance: float) -> pd.Series:
    """Finds the data sets, [N] bool, whose dense main metric is better than chance by no more than a distance.

    Args:
        rows: Rows of the benchmark.
        distance: Difference of metrics; of their logs for perplexities.
    """
    tasks = rows.groupby("task", sort=False)[["dense", "chance", "metric", "greater_is_better"]].first()
    numbers = tasks[["dense", "chance"]].astype(float)
    perplexity = tasks["metric"] == "perplexity"
    numbers[perplexity] = np.log(numbers[perplexity])
    better = numbers["dense"] - numbers["chance"]
    return better.where(tasks["greater_is_better"].astype(bool), -better) <= distance


def shared_points(rows: pd.DataFrame) -> pd.DataFrame:
    """Picks the rows of points that all methods have, for averages over different points cannot be compared."""
    counts = rows.groupby(POINT)["method"].transform("nunique")
    return rows[counts == rows["method"].nunique()]


def score_table(rows: pd.DataFrame, measure: str) -> pd.DataFrame:
    """Averages a measure over the points of each data set that all methods have: [N, k]."""
    shared = shared_points(rows)
    table = shared.pivot_table(index="task", columns="method", values=measure, sort=False)
    return table[[method for method in rows["method"].unique() if method in table]]


def rank_table(scores: pd.DataFrame, greater_is_better: bool) -> pd.DataFrame:
    """Ranks methods within each data set, [N, k], 1 the best; ties share their mean rank."""
    return scores.rank(axis=1, ascending=not greater_is_better)


@dataclass(frozen=True)
class Friedman:
    """Says whether the methods differ at all.

    Attributes:
        data_sets, methods: N and k.
        chi_square: Friedman's statistic, corrected for ties.
        f: Statistic in the form of Iman and Davenport (1980), F with k - 1 and (k - 1)(N - 1) degrees of freedom.
        p: Probability of `f` or more among equal methods.
        difference: Critical difference of mean ranks by Nemenyi at 5%.
    """

    data_sets: int
    methods: int
    chi_square: float
    f: float
    p: float
    difference: float


def friedman(scores: pd.DataFrame) -> Friedman:
    """Makes Friedman's test of [N, k] scores.

    Raises:
        ValueError: For fewer than 3 methods or 2 data sets.
    """
    n, k = scores.shape
    if k < 3 or n < 2:
        raise ValueError(f"Friedman's test takes at least 3 methods and 2 data sets, got {k} and {n}")
    chi_square = float(stats.friedmanchisquare(*scores.to_numpy().T).statistic)
    rest = n * (k - 1) - chi_square
    f = (n - 1) * chi_square / rest if rest > 1e-9 else np.inf
    p = float(stats.f.sf(f, k - 1, (k - 1) * (n - 1)))
    return Friedman(n, k, chi_square, float(f), p, critical_value(k) * rank_error(n, k))


@cache
def critical_value(methods: int, alpha: float = 0.05) -> float:
    """Gives q of Nemenyi's test: the studentised range of so many methods, over infinitely many degrees of freedom,
    by sqrt 2."""
    return float(stats.studentized_range.ppf(1 - alpha, methods, np.inf) / np.sqrt(2))


def rank_error(data_sets: int, methods: int) -> float:
    """Gives the standard error of a difference of mean ranks among equal methods, sqrt(k (k + 1) / (6 N))."""
    return float(np.sqrt(methods * (methods + 1) / (6 * data_sets)))


def nemenyi(scores: pd.DataFrame) -> pd.DataFrame:
    """Gives the p-values of all pairs, [k, k], from [N, k] scores (scikit-posthocs)."""
    pairs: pd.DataFrame = scikit_posthocs.posthoc_nemenyi_friedman(scores.to_numpy())
    return pairs.set_axis(scores.columns, axis=0).set_axis(scores.columns, axis=1)


def compare_planned(rows: pd.DataFrame, planned: Sequence[PlannedSpec], measure: str, margin: float) -> pd.DataFrame:
    """Tests the planned comparisons: one line each.

    The test is Wilcoxon's signed-rank test over data sets, two-sided, zero differences split between the signs, with
    Holm's correction over the pairs of which better is claimed, for the other claim is not decided by it. Each pair is
    compared on the points that both methods have.
    A cell is a data set, a target and a compensation, averaged over seeds.

    Args:
        rows: Rows of the data sets and targets that count.
        planned: Pairs of methods, with the claim of each.
        measure: Name of a measure in `GREATER_IS_BETTER`.
        margin: Smallest loss of a cell that counts as worse; only for `retained`.

    Returns:
        Columns method, against, claim, data_sets, difference (mean over data sets, positive where the method is
        better), p, holm, won, tied, lost, worse (cells lost by more than the margin), worst (the least difference of
        a cell) and holds: for better, a positive difference with a corrected p below 5%; for not_worse, no cell lost
        by more than the margin and a mean difference that is not negative. None where that cannot be said.
    """
    table = pd.DataFrame([_compared(rows, pair, measure, margin) for pair in planned])
    if not (tested := table["data_sets"] > 0).any():
        return table.assign(holds=None)
    corrected = tested & (table["claim"] == "better")
    table["holm"] = np.nan
    if corrected.any():
        table.loc[corrected, "holm"] = multipletests(table.loc[corrected, "p"].astype(float), method="holm")[1]
    better = (table["difference"] > 0) & (table["holm"] < 0.05)
    not_worse = (table["difference"] >= 0) & (table["worst"] >= -margin)
    table["holds"] = np.where(table["claim"] == "better", better, not_worse).astype(object)
    unknown = ~tested | ((table["claim"] == "not_worse") & (measure != "retained"))
    table.loc[unknown, "holds"] = None
    return table


def _compared(rows: pd.DataFrame, pair: PlannedSpec, measure: str, margin: float) -> dict[str, Any]:
    """One line of `compare_planned`, before any correction; without figures where one method has no rows."""
    both = rows[rows["method"].isin([pair.method, pair.against])]
    shared = shared_points(both) if both["method"].nunique() == 2 else both[:0]
    cells = shared.pivot_table(index=POINT[:3], columns="method", values=measure, sort=False)
    line = {"method": pair.method, "against": pair.against, "claim": pair.claim, "data_sets": 0}
    if not len(cells):
        return line
    sign = 1 if GREATER_IS_BETTER[measure] else -1
    gains = sign * (cells[pair.method] - cells[pair.against])
    by_set = gains.groupby("task").mean()
    return line | {
        "data_sets": len(by_set),
        "difference": by_set.mean(),
        "p": float(stats.wilcoxon(by_set, zero_method="zsplit").pvalue) if by_set.any() else 1.0,
        "won": int((gains > 0).sum()),
        "tied": int((gains == 0).sum()),
        "lost": int((gains < 0).sum()),
        "worse": int((gains < -margin).sum()) if measure == "retained" else None,
        "worst": gains.min(),
    }


def compare_losses(rows: pd.DataFrame, planned: Sequence[PlannedSpec]) -> pd.DataFrame:
    """Compares the losses of planned pairs on the same test examples, at each target by itself.

    The interval is that of a hierarchical bootstrap: data sets are drawn with replacement, of each of them seeds, and
    test examples, the same for all seeds.

    Args:
        rows: Rows whose `losses` hold the loss of every test example, as JSON.
        planned: Pairs of methods.

    Returns:
        Columns method, against, target, compensation, data_sets, draws, difference (mean loss of the method minus
        that of the other one, in nats: of log perplexity, where that is the metric), low and high (95%); one line
        for each target and compensation that both have rows of.
    """
    lines = []
    for pair in planned:
        for (target, compensation), group in rows.groupby(["target", "compensation"], sort=False):
            differences = _loss_differences(group, pair)
            if differences:
                line = {"method": pair.method, "against": pair.against, "target": target, "compensation": compensation}
                draws = sum(map(len, differences))
                mean = float(np.mean([one.mean() for one in differences]))
                low, high = percentiles(_resampled_means(differences))
                line |= {"data_sets": len(differences), "draws": draws}
                lines.append(line | {"difference": mean, "low": low, "high": high})
    return pd.DataFrame(lines)


def _loss_differences(rows: pd.DataFrame, pair: PlannedSpec) -> list[NDArray[np.float64]]:
    """[seeds, examples] of every data set: losses of one method minus those of the other, where both have rows."""
    one, other = (
        rows[rows["method"] == name].set_index(["task", "seed"])["losses"].map(json.loads)
        for name in (pair.method, pair.against)
    )
    both = pd.concat([one.rename("one"), other.rename("other")], axis=1, join="inner")
    found = [np.array(own["one"].tolist()) - np.array(own["other"].tolist()) for _, own in both.groupby("task")]
    return [differences for differences in found if len(differences)]


def _resampled_means(differences: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Means over data sets, seeds and examples that are drawn with replacement, [RESAMPLES]."""
    rng, means = np.random.default_rng(0), np.empty(RESAMPLES)
    for number in range(RESAMPLES):
        drawn = [differences[at] for at in rng.integers(len(differences), size=len(differences))]
        means[number] = np.mean(
            [
                one[rng.integers(len(one), size=len(one))][:, rng.integers(one.shape[1], size=one.shape[1])].mean()
                for one in drawn
            ]
        )
    return means


def area_under_curve(rows: pd.DataFrame, measure: str = "retained") -> pd.DataFrame:
    """Gives the mean height of a measure over the sparsities of each family of targets, by the trapezoid rule.

    Returns:
        Columns task, family, method, compensation, area; only for families with the sparsities that all methods have
        there, averaged over seeds. A single sparsity gives its value.
    """
    keys = ["task", "family", "method", "compensation"]
    means = shared_points(rows).groupby([*keys, "sparsity"], sort=False)[measure].mean().reset_index()

    def area(curve: pd.DataFrame) -> float:
        curve = curve.sort_values("sparsity")
        x, y = curve["sparsity"].to_numpy(), curve[measure].to_numpy()
        return float(y[0]) if len(x) == 1 else float(trapezoid(y, x) / (x[-1] - x[0]))

    areas = [(*name, area(curve)) for name, curve in means.groupby(keys, sort=False)]
    return pd.DataFrame(areas, columns=[*keys, "area"])
