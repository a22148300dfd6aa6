"""What the abstract of arXiv 2606.07615 claims, in its words, and whether it holds in the cells at hand.

A claim holds where it is true of the numbers and by a test. It does not hold where it is not true of the numbers, or,
where it is about a test, where the test finds nothing. It is not decidable where most studies of this size would miss
any difference, or where what is true of the numbers cannot be told from chance.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pandas as pd

from research.studies.paper.methods import PLANNED
from research.studies.paper.rivals import RIVALS
from research.studies.paper.rows import CLASSIFICATION, DEEP, DENSE, LOSS, REGRESSION, SUITES
from research.studies.paper.statistics import (
    ALPHA,
    BASELINES,
    SIX,
    Design,
    View,
    compare_pairs,
    critical_difference,
    detectable_difference,
    policy_view,
    score_table,
)

HELD, NOT_HELD, NOT_DECIDABLE = "held", "not held", "not decidable"
MARGIN = 0.05  # of R^2: a model is competitive that is surely not behind by more
SEVERAL = 2


@dataclass(frozen=True)
class Claim:
    """One claim on one suite.

    Attributes:
        words: The abstract's.
        suite: Suite that it is about.
        verdict: Held, not held or not decidable.
        why: The numbers.
    """

    words: str
    suite: str
    verdict: str
    why: str


def verdict(decidable: bool, in_numbers: bool, significant: bool) -> str:
    """Gives the verdict on a claim about numbers, as the top of the file has it."""
    if not decidable:
        return NOT_DECIDABLE
    if not in_numbers:
        return NOT_HELD
    return HELD if significant else NOT_DECIDABLE


def all_claims(cells: pd.DataFrame, tuned: bool = False, fractions: tuple[float, ...] = ()) -> list[Claim]:
    """Judges every claim.

    Args:
        cells: All cells.
        tuned: Whether networks were trained a little further.
        fractions: Fractions that are averaged; empty takes all.
    """

    def view(suite: str) -> View:
        return View(suite, tuned, fractions)

    there = set(cells["suite"])
    made = []
    for suite in SUITES:
        words = "significant differences between methods"
        made.append(_differ(cells, view(suite), words) if suite in there else _missing(words, suite))
        made += _of_suite(cells, view(suite)) if suite in there else [_missing(words, suite) for words in WORDS[suite]]
    return [*made, *_practical(cells)]


WORDS = {
    CLASSIFICATION: (
        "UCB1 obtains the highest mean rank among pruning policies",
        "and improves on the unpruned neural network",
        "MAB-based neuron pruning is an effective ... approach",
    ),
    REGRESSION: (
        "UCB1 obtains the highest mean rank",
        "is statistically competitive with, or superior to, several standard regression models according to R^2",
        "MAB-based neuron pruning is an effective ... approach",
    ),
    DEEP: (
        "UCB1 and Thompson Sampling obtain the strongest ranks",
        "several MAB policies significantly outperform the unpruned model, magnitude-based neuron pruning and greedy "
        "activation-variation pruning",
        "MAB-based neuron pruning is an effective ... approach",
    ),
}


def _of_suite(cells: pd.DataFrame, view: View) -> Iterator[Claim]:
    """The claims that are about one suite."""
    first, second, effective = WORDS[view.suite]
    pairs = planned(cells, view)
    best = ("ucb1", "thompson") if view.suite == DEEP else ("ucb1",)
    yield _ranks_best(cells, view, first, best)
    if view.suite == DEEP:
        yield _outperform(cells, view, second)
    elif view.suite == REGRESSION:
        yield _competitive(cells, view, second)
    else:
        yield _better(pairs, view, second, DENSE)
    yield _better(pairs, view, effective, "random")


def _missing(words: str, suite: str) -> Claim:
    return Claim(words, suite, NOT_DECIDABLE, "no cells of this suite")


def _small(words: str, view: View, design: Design) -> Claim:
    count, methods = design.scores.shape
    return Claim(words, view.suite, NOT_DECIDABLE, f"{methods} methods on {count} settings cannot show any difference")


def _differ(cells: pd.DataFrame, view: View, words: str) -> Claim:
    """Friedman's test of the six policies and the dense network."""
    design = policy_view(cells, view)
    if not design.decidable:
        return _small(words, view, design)
    test = design.test
    why = (
        f"F = {test.f:.2f}, p = {p_value(test.p)} for {test.methods} methods on {test.data_sets} settings; 80% of "
        f"studies find a true difference of {detectable_difference(test.data_sets, test.methods):.2f} ranks"
    )
    return Claim(words, view.suite, HELD if test.p < ALPHA else NOT_HELD, why)


def _ranks_best(cells: pd.DataFrame, view: View, words: str, best: tuple[str, ...]) -> Claim:
    """Whether these policies have the best mean ranks of the six, and the next one is behind by Nemenyi's test."""
    design = Design(score_table(cells, view, SIX))
    if not design.decidable:
        return _small(words, view, design)
    ranks = design.ranks
    leading, following = set(ranks.index[: len(best)]), ranks.index[len(best)]
    significant = all(design.separated(name, following) for name in best)
    shown = ", ".join(f"{name} {rank:.2f}" for name, rank in ranks.items())
    why = f"mean ranks {shown}; critical difference {design.test.difference:.2f}"
    return Claim(words, view.suite, verdict(True, leading == set(best), significant), why)


def _better(pairs: pd.DataFrame, view: View, words: str, other: str) -> Claim:
    """Whether UCB1 is better than another method, by the planned comparisons."""
    if not len(pairs) or other not in set(pairs["against"]):
        return _missing(words, view.suite)
    pair = pairs[(pairs["method"] == "ucb1") & (pairs["against"] == other)].iloc[0]
    found = verdict(bool(pair["decidable"]), pair["difference"] > 0, pair["holm"] < ALPHA)
    why = (
        f"ucb1 less {other}: {points(pair)}, Holm p = {p_value(pair['holm'])}; better on {pair['won']} of "
        f"{pair['settings']}, worse on {pair['lost']}"
    )
    return Claim(words, view.suite, found, why)


def _competitive(cells: pd.DataFrame, view: View, words: str) -> Claim:
    """Whether UCB1 is better than several rivals, or surely not behind them by more than the margin."""
    pairs = compare_pairs(score_table(cells, view), [("ucb1", rival) for rival in RIVALS])
    if not len(pairs):
        return _missing(words, view.suite)
    superior = pairs[(pairs["difference"] > 0) & (pairs["holm"] < ALPHA)]
    level = pairs[pairs["low"] > -MARGIN]
    names = sorted({*superior["against"], *level["against"]})
    shown = "; ".join(f"less {pair['against']} {points(pair)}" for _, pair in pairs.iterrows())
    why = f"ucb1 {shown}; not behind by more than {MARGIN} R^2: {', '.join(names) or 'none'}"
    decidable = bool(pairs["decidable"].any())
    return Claim(words, view.suite, verdict(decidable, len(names) >= SEVERAL, True), why)


def _outperform(cells: pd.DataFrame, view: View, words: str) -> Claim:
    """Whether several policies rank above all three baselines, and are separated from each by Nemenyi's test."""
    design = Design(score_table(cells, view, (*SIX, *BASELINES)))
    if not design.decidable or not set(BASELINES) <= set(design.scores):
        return _small(words, view, design)
    ranks = design.ranks
    above = [name for name in SIX if name in ranks and all(ranks[name] < ranks[other] for other in BASELINES)]
    clear = [name for name in above if all(design.separated(name, other) for other in BASELINES)]
    shown = ", ".join(f"{name} {ranks[name]:.2f}" for name in BASELINES)
    why = (
        f"above all three by mean rank ({shown}): {', '.join(above) or 'none'}; significantly: "
        f"{', '.join(clear) or 'none'}; critical difference {design.test.difference:.2f}"
    )
    return Claim(words, view.suite, verdict(True, len(above) >= SEVERAL, len(clear) >= SEVERAL), why)


def _practical(cells: pd.DataFrame) -> Iterator[Claim]:
    """Whether a search of UCB1 sends no more forward than the training of the network did."""
    words = "computationally practical"
    for suite in dict.fromkeys(cells["suite"]):
        shares = search_shares(cells[cells["suite"] == suite])
        if not len(shares):
            continue
        median, most = shares.median(), shares.max()
        why = (
            f"a search sends forward {median:.0%} (median of {len(shares)} settings) to {most:.0%} (largest) of what "
            "training sent"
        )
        yield Claim(words, suite, HELD if median <= 1 else NOT_HELD, why)


def search_shares(cells: pd.DataFrame) -> "pd.Series[float]":
    """Gives what a search of UCB1 sends forward, as a share of what the training of the network did, by setting."""
    plain = cells[(cells["variant"] == "") & ~cells["tuned"]]
    ucb1 = plain[(plain["method"] == "ucb1") & (plain["reward"] == LOSS)].groupby("setting")["tokens"].mean()
    dense = plain[plain["method"] == DENSE].groupby("setting")["tokens"].mean()
    return (ucb1 / dense[dense > 0]).dropna()


def planned(cells: pd.DataFrame, view: View) -> pd.DataFrame:
    """Tests the pairs that were named before the runs."""
    return compare_pairs(score_table(cells, view), PLANNED)


def points(line: Any) -> str:
    """Writes the mean difference of a line of a table, with its interval."""
    return f"{line['difference']:+.3f} ({line['low']:+.3f} to {line['high']:+.3f})"


def p_value(p: float) -> str:
    """Writes a p-value."""
    return f"{p:.3f}" if p >= 0.001 else f"{p:.1e}"


def sizes(cells: pd.DataFrame) -> pd.DataFrame:
    """Says of every design how many methods and settings it has, and what it could have detected.

    Returns:
        Columns suite, methods, settings, critical (difference of mean ranks), detectable (true difference, in 80% of
        studies), largest (that there can be).
    """
    lines = []
    for suite in (suite for suite in SUITES if suite in set(cells["suite"])):
        view = View(suite)
        designs = {
            "the six policies": score_table(cells, view, SIX),
            "the six and the dense network": score_table(cells, view, (*SIX, DENSE)),
            "all methods": score_table(cells, view),
        }
        for name, scores in designs.items():
            shape = scores.shape
            if min(shape) < 2:
                continue
            figures = critical_difference(*shape), detectable_difference(*shape), shape[1] - 1
            lines.append((suite, name, *shape[::-1], *figures))
    return pd.DataFrame(lines, columns=["suite", "design", "methods", "settings", "critical", "detectable", "largest"])
