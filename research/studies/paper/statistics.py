"""What the cells say: scores by setting, ranks, tests and effect sizes. Pure: frames in, frames out.

A setting is a table, or a task of the deep suite. Splits, seeds and fractions are averaged before settings are ranked
(Demsar 2006, JMLR 7). An R^2 below 0 counts as 0: an answer that is worse than the mean says nothing by how much, and
one such table would decide every average.
Symbols: N settings, k methods.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats
from statsmodels.stats.multitest import multipletests

from research.benchmarks.statistics import Friedman, critical_value, friedman, nemenyi, rank_error, rank_table
from research.studies.paper.methods import CRITERIA, POLICIES
from research.studies.paper.rivals import RIVALS
from research.studies.paper.rows import DEEP, DENSE, KL, LOSS

ALPHA, POWER = 0.05, 0.8
RESAMPLES = 2000  # of a bootstrap over settings
ALL_SIGNS = 13  # values at most whose signs scipy's test of tied values goes through


@dataclass(frozen=True)
class View:
    """Says which cells a comparison looks at.

    Attributes:
        suite: One of the suites.
        tuned: Whether networks were trained a little further, the dense one as well.
        fractions: Fractions that are averaged; empty takes all.
        variant: Mistake that was made, or empty.
    """

    suite: str
    tuned: bool = False
    fractions: tuple[float, ...] = ()
    variant: str = ""


def label(method: str, reward: str = LOSS) -> str:
    """Names a method in tables: those with the reward KL say so, those with the paper's do not."""
    return f"{method} (KL)" if reward == KL else method


SIX = tuple(map(label, POLICIES))
SIX_KL = tuple(label(name, KL) for name in POLICIES)


def left_out(cells: pd.DataFrame) -> list[str]:
    """Lists the deep settings that do not count, since their dense network is near chance in most draws."""
    dense = cells[(cells["suite"] == DEEP) & (cells["method"] == DENSE) & ~cells["tuned"]]
    shares = dense.groupby("setting")["chance"].mean()
    return sorted(shares[shares > 0.5].index)


def seen(cells: pd.DataFrame, view: View) -> pd.DataFrame:
    """Picks the cells of a view, with the column `label`; R^2 below 0 becomes 0. Rivals are there in any view."""
    rows = cells[(cells["suite"] == view.suite) & ~cells["setting"].isin(left_out(cells))]
    apart = rows["method"].isin([*RIVALS])
    dense = (rows["method"] == DENSE) & (rows["tuned"] == view.tuned)
    pruned = (rows["fraction"] > 0) & (rows["tuned"] == view.tuned) & (rows["variant"] == view.variant)
    if view.fractions:
        pruned &= rows["fraction"].round(6).isin(view.fractions)
    rows = rows[apart | dense | pruned]
    labels = [label(*pair) for pair in zip(rows["method"], rows["reward"], strict=True)]
    floored = rows["score"].where((rows["metric"] != "r2") | (rows["score"] > 0), 0.0)
    return rows.assign(label=labels, score=floored)


def score_table(cells: pd.DataFrame, view: View, methods: Sequence[str] = ()) -> pd.DataFrame:
    """Averages scores over draws and fractions: [N, k], of the methods that all settings have.

    Args:
        cells: All cells.
        view: Which of them count.
        methods: Labels, in the order of columns; empty takes all.
    """
    rows = seen(cells, view)
    if view.variant:  # on the draws that the mistakes were made on
        rows = rows[rows["draw"].isin(rows.loc[rows["fraction"] > 0, "draw"])]
    table = rows.pivot_table(index="setting", columns="label", values="score")
    wanted = [name for name in methods or table.columns if name in table]
    return table[wanted].dropna(axis=1)


@dataclass(frozen=True)
class Design:
    """Compares methods over settings.

    Attributes:
        scores: [N, k].
    """

    scores: pd.DataFrame

    @property
    def possible(self) -> bool:
        """Whether there is enough for Friedman's test."""
        return self.scores.shape[0] >= 2 and self.scores.shape[1] >= 3

    @cached_property
    def test(self) -> Friedman:
        """Friedman's test in the form of Iman and Davenport, with Nemenyi's critical difference."""
        return friedman(self.scores)

    @cached_property
    def ranks(self) -> pd.Series:
        """Mean rank of every method, 1 the best, in order."""
        return rank_table(self.scores, greater_is_better=True).mean().sort_values(kind="stable")

    @cached_property
    def pairs(self) -> pd.DataFrame:
        """Nemenyi's p-values of all pairs, [k, k]."""
        return nemenyi(self.scores)

    @property
    def largest(self) -> int:
        """Largest difference of mean ranks that there can be."""
        return self.scores.shape[1] - 1

    @property
    def decidable(self) -> bool:
        """Whether there can be a difference of mean ranks that most studies of this size would find."""
        return self.possible and detectable_difference(*self.scores.shape) <= self.largest

    def separated(self, one: str, other: str) -> bool:
        """Tells whether two methods differ by Nemenyi's test."""
        return bool(float(self.pairs[one][other]) < ALPHA)

    def separations(self, methods: Sequence[str]) -> tuple[int, int]:
        """Counts the pairs of some methods that differ, and all their pairs."""
        own = [name for name in methods if name in self.scores]
        found = [self.separated(one, other) for at, one in enumerate(own) for other in own[at + 1 :]]
        return sum(found), len(found)


def critical_difference(settings: int, methods: int, alpha: float = ALPHA) -> float:
    """Gives Nemenyi's critical difference: the least difference of mean ranks that counts when it is observed.

    q sqrt(k (k + 1) / (6 N)), q that of k methods.
    """
    return critical_value(methods, alpha) * rank_error(settings, methods)


def detectable_difference(settings: int, methods: int, alpha: float = ALPHA, power: float = POWER) -> float:
    """Gives the least true difference of mean ranks that is observed to be critical in a share `power` of studies.

    The critical difference, and that quantile of the error of an observed one, as large as among equal methods.
    """
    return critical_difference(settings, methods, alpha) + float(stats.norm.ppf(power)) * rank_error(settings, methods)


def compare_pairs(scores: pd.DataFrame, pairs: Sequence[tuple[str, str]]) -> pd.DataFrame:
    """Tests pairs of methods that were named before: Wilcoxon's signed-rank test over settings, Holm's correction.

    Two-sided, zero differences split between the signs.

    Args:
        scores: [N, k].
        pairs: Pairs of methods; those that the scores lack are left out.

    Returns:
        Columns method, against, settings, difference (mean, positive where the method is better), low and high (95%
        bootstrap over settings), p, holm, won, lost, detectable (the mean difference that would be found in `POWER` of
        studies with this spread, by the normal approximation) and decidable (whether the smallest p-value that there
        can be is significant at all).
    """
    there = [pair for pair in pairs if set(pair) <= set(scores)]
    table = pd.DataFrame([_pair(scores[one] - scores[other], one, other, len(there)) for one, other in there])
    if len(table):
        table["holm"] = multipletests(table["p"].to_numpy(), method="holm")[1]
    return table


def _pair(gains: pd.Series, one: str, other: str, pairs: int) -> dict[str, Any]:
    """One line of `compare_pairs`, before the correction for so many pairs; gains are [N]."""
    count, changed = len(gains), bool(gains.any())
    low, high = interval(gains) if changed and count > 1 else (gains.mean(), gains.mean())
    quantile = stats.norm.ppf(1 - ALPHA / (2 * pairs)) + stats.norm.ppf(POWER)
    spread = gains.std() * math.sqrt(math.pi / 3 / count)  # of the signed-rank test's estimate, for normal differences
    return {
        "method": one,
        "against": other,
        "settings": count,
        "difference": gains.mean(),
        "low": low,
        "high": high,
        "p": _signed_rank(tuple(gains)) if changed else 1.0,
        "won": int((gains > 0).sum()),
        "lost": int((gains < 0).sum()),
        "detectable": quantile * spread,
        "decidable": pairs * 2.0 ** (1 - count) <= ALPHA,
    }


@cache
def _signed_rank(gains: tuple[float, ...]) -> float:
    """Wilcoxon's two-sided p-value, as scipy gives it; a page asks for the same ones several times.

    Of few values with ties scipy goes through all signs, ranks them again for each, and takes a second: here ranks are
    taken once, for signs do not change them.
    """
    sizes = np.abs(gains)
    tied = len(np.unique(sizes)) < len(sizes) or not sizes.all()
    if not tied or len(gains) > ALL_SIGNS:
        return float(stats.wilcoxon(gains, zero_method="zsplit").pvalue)
    ranks = np.sign(gains) * stats.rankdata(sizes)
    test = stats.permutation_test((ranks,), np.sum, permutation_type="samples", vectorized=True)
    return float(test.pvalue)


def interval(values: "pd.Series[float]") -> tuple[float, float]:
    """Gives the 95% percentile bootstrap interval of a mean over settings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        found = stats.bootstrap(
            (values.to_numpy(),),
            np.mean,
            n_resamples=RESAMPLES,
            method="percentile",
            rng=np.random.default_rng(0),
        ).confidence_interval
    return float(found.low), float(found.high)


def summary(scores: pd.DataFrame) -> pd.DataFrame:
    """Describes every method, by mean rank: [k] rows.

    Returns:
        Columns rank (mean), median and mad (median absolute deviation over settings); and, where there is a dense
        network, difference from it (mean), low and high (95% bootstrap over settings).
    """
    ranks = rank_table(scores, greater_is_better=True).mean().sort_values(kind="stable")
    table = pd.DataFrame({"rank": ranks, "median": scores.median(), "mad": scores.apply(stats.median_abs_deviation)})
    table = table.loc[ranks.index]
    if DENSE in scores:
        gains = scores.sub(scores[DENSE], axis=0)[list(table.index)]
        bounds = [interval(gains[name]) if gains[name].any() else (0.0, 0.0) for name in gains]
        table["difference"] = gains.mean()
        table["low"], table["high"] = np.array(bounds).T
    return table


def pruning_labels(scores: pd.DataFrame) -> list[str]:
    """Lists the labels of scores that are neither a rival's nor the dense network's."""
    return [str(name) for name in scores if name not in (*RIVALS, DENSE)]


def policy_view(cells: pd.DataFrame, view: View) -> Design:
    """Compares the six policies under the paper's reward with the dense network."""
    return Design(score_table(cells, view, (*SIX, DENSE)))


def all_methods(cells: pd.DataFrame, view: View) -> Design:
    """Compares all methods, rivals included."""
    return Design(score_table(cells, view))


BASELINES = (DENSE, *CRITERIA[1:3])  # the abstract's: unpruned, magnitude, activation variation
