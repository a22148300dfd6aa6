"""What four mistakes of an earlier code base would have changed, each made on purpose beside the study.

The 2017 public code of the first author measured rewards on the split that it reported on, ranked arms by cumulative
reward, took a critical value for far fewer methods than it compared, and did not separate the policies themselves.
"""

import numpy as np
import pandas as pd

from research.benchmarks.statistics import critical_value, rank_error, rank_table
from research.studies.paper.claims import p_value
from research.studies.paper.methods import CUMULATIVE, SAME_SPLIT
from research.studies.paper.rows import CLASSIFICATION, DENSE, REGRESSION
from research.studies.paper.statistics import SIX, Design, View, all_methods, score_table

FEW = 5  # methods, of the critical value that is too small


def mistakes(cells: pd.DataFrame) -> pd.DataFrame:
    """Compares conclusions with and without each mistake.

    Returns:
        Columns suite, mistake, done right, with the mistake: half a sentence each.
    """
    lines = []
    for suite in (suite for suite in (CLASSIFICATION, REGRESSION) if suite in set(cells["suite"])):
        draws = cells.loc[(cells["suite"] == suite) & (cells["variant"] != ""), "draw"].unique()
        plain = score_table(cells[cells["draw"].isin(draws)], View(suite), (*SIX, DENSE))
        for variant, name in (
            (SAME_SPLIT, "rewards and report on the same rows"),
            (CUMULATIVE, "arms ranked by cumulative reward"),
        ):
            wrong = score_table(cells, View(suite, variant=variant), (*SIX, DENSE))
            if len(wrong) and set(SIX) <= set(wrong):
                lines.append((suite, name, _told(plain), _told(wrong)))
        everything = all_methods(cells, View(suite))
        if everything.decidable:
            lines.append((suite, f"critical value for {FEW} methods", *_values(everything)))
            lines.append((suite, "no test among the policies themselves", *_among(cells, suite, everything)))
    return pd.DataFrame(lines, columns=["suite", "mistake", "done right", "with the mistake"])


def _told(scores: pd.DataFrame) -> str:
    """What one would say of the six policies and the dense network."""
    gain = (scores["ucb1"] - scores[DENSE]).mean()
    six = scores[list(SIX)]
    ranks = rank_table(six, greater_is_better=True).mean().sort_values()
    place = list(ranks.index).index("ucb1") + 1
    mean = (six.mean(axis=1) - scores[DENSE]).mean()
    return f"ucb1 {gain:+.3f} from dense, all six {mean:+.3f}; ucb1 in place {place} of 6, {ranks.index[0]} first"


def _values(design: Design) -> tuple[str, str]:
    """Pairs that count with the critical value for all methods, and with one for a few."""
    count, methods = design.scores.shape
    gaps = np.abs(np.subtract.outer(design.ranks.to_numpy(), design.ranks.to_numpy()))[np.triu_indices(methods, 1)]
    told = []
    for number in (methods, FEW):
        q = critical_value(number)
        found = int((gaps > q * rank_error(count, methods)).sum())
        told.append(f"{found} of {len(gaps)} pairs of {methods} methods differ (q = {q:.2f})")
    return told[0], told[1]


def _among(cells: pd.DataFrame, suite: str, everything: Design) -> tuple[str, str]:
    """What a test of all methods says, and one of the policies alone."""
    six = Design(score_table(cells, View(suite), SIX))
    found, pairs = six.separations(SIX)
    right = f"p = {p_value(six.test.p)} among the six; {found} of {pairs} pairs of policies differ"
    return right, f'p = {p_value(everything.test.p)} among all {everything.scores.shape[1]} methods: "they differ"'
