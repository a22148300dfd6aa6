"""What the paper found, and whether it holds in the cells; each finding by all the tests that it could be read as."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from research.studies.interpretability.estimates import (
    NOT_DECIDABLE,
    POINT,
    Estimate,
    correlation,
    larger,
    over_seeds,
    unrelated,
)
from research.studies.interpretability.protocol import (
    CONNECTION,
    EQUAL,
    FREE,
    KINDS,
    LONG,
    ONE_SHOT,
    STRUCTURED,
    UNEQUAL,
    UNSTRUCTURED,
)
from research.studies.interpretability.rows import TRAINED_LONG, UNPRUNED, UNTRAINED, control, pruned

ITERATIVE = "Iterative beats one-shot"
BEST = "Connection sparsity keeps accuracy best"
MATCH = "With enough retraining networks match or pass the original"
NO_RELATION = "No significant relation of pruning rate and MIS"
HIGH = "Networks of almost no accuracy can have high MIS"
ALMOST_NONE = 0.05  # of accuracy above that of the untrained network
RETRAINED = (ONE_SHOT, EQUAL, UNEQUAL, LONG)
HALF = 0.5  # of what the unpruned network's score is above chance: less is not high


@dataclass(frozen=True)
class Test:
    """One reading of a finding.

    Attributes:
        finding: Its words.
        reading: What was compared.
        estimate: What came of it.
        verdict: Held, not held or not decidable.
    """

    finding: str
    reading: str
    estimate: Estimate
    verdict: str


def all_tests(cells: pd.DataFrame, network: str) -> list[Test]:
    """Makes all tests of the five findings, on one network that was pruned step by step."""
    parts = (iterative_tests, best_tests, match_tests, relation_tests, high_tests)
    return [test for part in parts for test in part(cells, network)]


def iterative_tests(cells: pd.DataFrame, network: str) -> Iterator[Test]:
    """Compares schedules, all kinds and rates together."""
    table = _accuracies(cells, network).unstack("schedule")
    pairs = (
        (EQUAL, ONE_SHOT, "equal training"),
        (UNEQUAL, LONG, "equal training, more of it"),
        (UNEQUAL, ONE_SHOT, "the iterative one trained longer"),
    )
    for better, worse, words in pairs:
        if {better, worse} <= set(table):
            found = _by_seed(table[better] - table[worse])
            yield Test(ITERATIVE, f"accuracy, iterative less one-shot: {words}", found, larger(found))
    if {EQUAL, UNEQUAL} <= set(table):
        found = _by_seed(table[UNEQUAL] - table[EQUAL])
        yield Test(ITERATIVE, "accuracy, what the longer training alone brings", found, "")


def best_tests(cells: pd.DataFrame, network: str) -> Iterator[Test]:
    """Compares connection sparsity with the better of the other kinds, retrained schedules and rates together."""
    table = _accuracies(cells, network).groupby(["seed", "kind"]).mean().unstack("kind")
    others = [kind for kind in (STRUCTURED, UNSTRUCTURED) if kind in table]
    for kind, words in ((CONNECTION, "held at zero"), (FREE, "not held")):
        if kind in table and others:
            found = over_seeds(list(table[kind] - table[others].max(axis=1, skipna=False)))
            left = pruned(cells, network, RETRAINED).query("kind == @kind")["zeros"].mean()
            reading = f"accuracy less that of the best other kind: {words}, {left:.0%} of the weights zero at the end"
            yield Test(BEST, reading, found, larger(found))


def match_tests(cells: pd.DataFrame, network: str) -> Iterator[Test]:
    """Compares what was trained longest with the unpruned network, as it was and trained as long."""
    rows = pruned(cells, network, RETRAINED)
    longest = rows[rows["epochs"] == rows["epochs"].max()]
    for name, words in ((UNPRUNED, "as it was"), (TRAINED_LONG, "trained as long")):
        reference = control(cells, network, name)["accuracy"]
        for kind in (kind for kind in KINDS if kind in set(longest["kind"])):
            of_kind = longest[longest["kind"] == kind].set_index("seed")
            found = _by_seed(of_kind["accuracy"] - reference.reindex(of_kind.index))
            reading = f"accuracy, {kind}, less that of the unpruned network {words}"
            yield Test(MATCH, reading, found, larger(found, -POINT, -POINT))


def relation_tests(cells: pd.DataFrame, network: str) -> Iterator[Test]:
    """Correlates rate and score, less the unpruned network's of the same seed."""
    for words, found in relations(cells, network):
        yield Test(NO_RELATION, f"correlation of rate and MIS, {words}", found, unrelated(found))


def relations(cells: pd.DataFrame, network: str, score: str = "mis") -> Iterator[tuple[str, Estimate]]:
    """Correlates rate and a score over the cells that were retrained: in words, and the correlation.

    Scores are less the unpruned network's of the same seed, so that its own point is (0, 0).
    """
    rows = pruned(cells, network, RETRAINED)
    before = control(cells, network, UNPRUNED)[score]
    rows = rows.assign(change=rows[score] - rows["seed"].map(before))
    origin = pd.DataFrame({"kind": sorted(set(rows["kind"])), "rate": 0.0, "change": 0.0})
    origins = pd.concat([origin] * len(before), ignore_index=True)
    together = pd.concat([rows[["kind", "rate", "change"]], origins], ignore_index=True)
    yield "all kinds, the unpruned network once a kind", correlation(together["rate"], together["change"])
    yield "all kinds, without it", correlation(rows["rate"], rows["change"])
    for kind in (kind for kind in KINDS if kind in set(rows["kind"])):
        for frame, suffix in ((rows, "without it"), (together, "with it")):
            part = frame[frame["kind"] == kind]
            yield f"{kind}, {suffix}", correlation(part["rate"], part["change"])


def high_tests(cells: pd.DataFrame, network: str) -> Iterator[Test]:
    """Asks what is left of the unpruned score above 0.5, in networks of almost no accuracy and in untrained ones."""
    before, fresh = control(cells, network, UNPRUNED)["mis"], control(cells, network, UNTRAINED)
    if not len(fresh) or not len(before):
        return
    rows = pruned(cells, network)
    rows = rows[rows["accuracy"] <= fresh["accuracy"].mean() + ALMOST_NONE]
    for found, words in (
        (rows, f"{len(rows)} pruned cells of almost no accuracy"),
        (fresh.reset_index(), "untrained"),
    ):
        shares = (found["mis"] - 0.5) / (found["seed"].map(before) - 0.5)
        estimate = over_seeds(list(shares.groupby(found["seed"]).mean()))
        verdict = larger(estimate, HALF, HALF) if len(found) else NOT_DECIDABLE
        yield Test(HIGH, f"MIS above 0.5, as a share of the unpruned network's: {words}", estimate, verdict)


def final_verdicts(tests: Sequence[Test]) -> dict[str, str]:
    """Gives one verdict a finding: that of its readings, where they agree, else each of them that there is."""
    found: dict[str, list[str]] = {}
    for test in tests:
        found.setdefault(test.finding, []).extend([test.verdict] if test.verdict else [])
    return {finding: " / ".join(dict.fromkeys(verdicts)) for finding, verdicts in found.items()}


def _accuracies(cells: pd.DataFrame, network: str) -> "pd.Series[float]":
    """Gives accuracy by seed, kind, rate and schedule, of what was retrained."""
    rows = pruned(cells, network, RETRAINED)
    return rows.set_index(["seed", "kind", "rate", "schedule"])["accuracy"]


def _by_seed(differences: "pd.Series[float]") -> Estimate:
    """Averages differences within each seed, then over seeds."""
    means = differences.dropna().groupby(level="seed").mean()
    return over_seeds(np.asarray(means, dtype=float).tolist())
