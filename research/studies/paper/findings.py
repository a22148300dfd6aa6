"""What a reader should take away, in sentences that the numbers fill in; and whether the networks are a straw man."""

import pandas as pd

from research.studies.paper.claims import HELD, NOT_DECIDABLE, NOT_HELD, all_claims, p_value, planned, points
from research.studies.paper.plots import retained
from research.studies.paper.rivals import RIVALS, SKLEARN_MLP
from research.studies.paper.rows import DEEP, DENSE, KL, SUITES
from research.studies.paper.statistics import (
    SIX,
    Design,
    View,
    compare_pairs,
    label,
    pruning_labels,
    score_table,
)
from research.studies.paper.words import STRAW


def findings(cells: pd.DataFrame) -> str:
    """Writes the section."""
    verdicts = [claim.verdict for claim in all_claims(cells)]
    counts = ", ".join(f"{verdicts.count(name)} {name}" for name in (HELD, NOT_HELD, NOT_DECIDABLE))
    lines = [f"Of {len(verdicts)} claims, suite by suite: {counts}."]
    for suite in (suite for suite in SUITES if suite in set(cells["suite"])):
        lines += _of_suite(cells, suite)
    return "## What to take away\n\n" + "\n".join(f"- {line}" for line in lines)


def _of_suite(cells: pd.DataFrame, suite: str) -> list[str]:
    """The sentences on one suite."""
    view, named = View(suite), f"**{suite.capitalize()}.**"
    scores = score_table(cells, view)
    if min(scores.shape) < 2 or not set(SIX) <= set(scores):
        return [f"{named} Too few cells to say anything."]
    six = Design(scores[list(SIX)])
    lines = []
    if six.decidable:
        found, pairs = six.separations(SIX)
        lines.append(
            f"{named} Among the six policies themselves p = {p_value(six.test.p)}, and {found} of {pairs} pairs "
            "differ: " + ("which one is taken matters." if found else "which one is taken does not show.")
        )
    else:
        lines.append(f"{named} {len(scores)} settings are too few to tell the six policies apart.")
    rewards = [(label(name, KL), name) for name in SIX if label(name, KL) in scores]
    if rewards:
        gains = compare_pairs(scores, rewards)
        better = int(((gains["difference"] > 0) & (gains["holm"] < 0.05)).sum())
        lines.append(
            f"{named} With KL in the place of the paper's reward the policies gain {gains['difference'].mean():+.3f} "
            f"on average; {better} of {len(gains)} gains are significant."
        )
    pruned = pruning_labels(scores)
    order = Design(scores[pruned]).ranks
    places = [f"{name} in place {list(order.index).index(name) + 1}" for name in (_best_policy(order), "random")]
    lines.append(
        f"{named} Best mean ranks of all {len(pruned)} ways to prune: {_ranked(order[:3])}; the best policy with the "
        f"paper's reward is {places[0]}, {places[1]}."
    )
    named_before = planned(cells, view)
    told = [
        f"{what} {points(line)}, Holm p = {p_value(line['holm'])}"
        for other, what in (("uniform", "even allocation of as many pulls"), ("random", "random removal"))
        for _, line in named_before[(named_before["method"] == "ucb1") & (named_before["against"] == other)].iterrows()
    ]
    lines.append(f"{named} UCB1 with the paper's reward less {'; less '.join(told)}.")
    lines.append(_small_fraction(cells, suite, named))
    rivals = [name for name in RIVALS if name in scores]
    if rivals and suite != DEEP:
        means = scores[[*rivals, DENSE]].mean().sort_values(ascending=False)
        lines.append(f"{named} Mean scores beside the dense network: {_scored(means)}.")
    return lines


def _small_fraction(cells: pd.DataFrame, suite: str, named: str) -> str:
    """What the smallest fraction changes, where an improvement is likeliest."""
    table = retained(cells, View(suite))
    six = table.loc[[name for name in SIX if name in table.index]]
    told = [
        f"with {fraction:.0%} removed, by {six[fraction].min():+.3f} to {six[fraction].max():+.3f}"
        for fraction in (table.columns.min(), table.columns.max())
    ]
    return f"{named} The six change the score of the dense network {'; '.join(told)}."


def _ranked(ranks: "pd.Series[float]") -> str:
    return ", ".join(f"{name} {rank:.2f}" for name, rank in ranks.items())


def _scored(means: "pd.Series[float]") -> str:
    return ", ".join(f"{name} {mean:.3f}" for name, mean in means.items())


def _best_policy(order: "pd.Series[float]") -> str:
    return next(str(name) for name in order.index if name in SIX)


def straw_man(cells: pd.DataFrame) -> str:
    """Compares the dense networks with scikit-learn's own, means over splits; empty where that was not measured."""
    rows = cells[cells["method"].isin([DENSE, SKLEARN_MLP]) & ~cells["tuned"] & (cells["suite"] != DEEP)]
    figures = rows.groupby(["setting", "method"])["score"].agg(["mean", "std"]).unstack()
    if ("mean", SKLEARN_MLP) not in figures:
        return ""
    ours, own, spread = figures["mean"][DENSE], figures["mean"][SKLEARN_MLP], figures["std"][SKLEARN_MLP]
    behind, apart = ours < own - spread, (ours - own).abs() > spread
    names = ", ".join(
        f"{name} {ours[name]:.3f} of {own[name]:.3f} ({spread[name]:.3f})" for name in ours.index[behind]
    )
    near = (
        cells[(cells["method"] == DENSE) & ~cells["tuned"] & (cells["suite"] != DEEP)]
        .groupby("setting")["chance"]
        .mean()
    )
    weak = ", ".join(near.index[near > 0.5])
    splits = rows[rows["method"] == SKLEARN_MLP].groupby("setting")["draw"].nunique()
    return STRAW.format(
        splits=" to ".join(map(str, dict.fromkeys((splits.min(), splits.max())))),
        within=int((~apart).sum()),
        tables=len(ours),
        level=int((~behind).sum()),
        names=names or "none",
        weak=weak or "none",
    )
