"""Cells as a run leaves them, with scores that are drawn: for statistics, claims and the page."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from research.studies.paper.methods import POLICIES, Method, Protocol, pruning_methods
from research.studies.paper.rivals import RIVALS, SKLEARN_MLP
from research.studies.paper.rows import CLASSIFICATION, DEEP, DENSE, REGRESSION, Row
from research.studies.store import as_frame
from tests.seeds import moved

PROTOCOL = Protocol(splits=2, fractions=(0.1, 0.5), variant_splits=1)
SUITES = {CLASSIFICATION: 15, REGRESSION: 13, DEEP: 7}
METRICS = {CLASSIFICATION: "accuracy", REGRESSION: "r2", DEEP: "accuracy"}


def small_cells(
    gains: Mapping[str, float] | None = None, suites: Mapping[str, int] | None = None, noise: float = 0.02
) -> pd.DataFrame:
    """Draws two splits and two fractions of every method on so many settings of each suite.

    Args:
        gains: What a method scores above the dense network; others lose 0.1.
        suites: Settings of each suite.
        noise: Deviation of a score.
    """
    rng, gains, rows = np.random.default_rng(moved(0)), gains or {}, []
    for suite, count in (suites or SUITES).items():
        for setting in (f"{suite}-{number}" for number in range(count)):
            for draw in range(PROTOCOL.splits):
                rows += _unit(rng, suite, setting, draw, gains, noise)
    return as_frame(rows)


def _unit(
    rng: np.random.Generator, suite: str, setting: str, draw: int, gains: Mapping[str, float], noise: float
) -> list[Row]:
    def row(method: str, tuned: bool = False, **columns: object) -> Row:
        gain = 0.0 if method == DENSE else gains.get(method, -0.1)
        score = 0.7 + gain + (0.0 if method == DENSE else noise * float(rng.normal()))
        given: dict[str, object] = {"method": method, "tuned": tuned, "score": score, "dense_score": 0.7, **columns}
        return Row(suite=suite, setting=setting, draw=draw, metric=METRICS[suite], loss=1.0, kl=0.1, **given)  # type: ignore[arg-type]

    rows = [row(DENSE, tuned, tokens=1000, seconds=1.0) for tuned in (False, True)]
    for method in pruning_methods(PROTOCOL, draw):
        if suite == DEEP and (
            method.variant or method.name not in (*POLICIES, "random", "magnitude", "activation_variation")
        ):
            continue
        for fraction in PROTOCOL.fractions:
            rows += [
                row(**_named(method), fraction=fraction, tuned=tuned)
                for tuned in (False, True)[: 1 if method.variant else 2]
            ]
    if suite != DEEP:
        rows += [row(name, seconds=0.5) for name in (*RIVALS, SKLEARN_MLP)]
    return rows


def _named(method: Method) -> dict[str, object]:
    pulls = 100 if method.reward else 0
    return {
        "method": method.name,
        "reward": method.reward,
        "variant": method.variant,
        "pulls": pulls,
        "tokens": 5 * pulls,
    }
