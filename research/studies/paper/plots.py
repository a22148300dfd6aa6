"""The figures of the study: ranks on a line, what is left against what went, and quality against cost."""

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from research.benchmarks.quality_report import critical_difference
from research.studies.paper.methods import CRITERIA
from research.studies.paper.rows import DEEP, KL, SUITES
from research.studies.paper.statistics import SIX, SIX_KL, View, label, policy_view, seen

DPI = 110
SHOWN = ("ucb1", "thompson", label("ucb1", KL), label("race", KL), *CRITERIA)  # by name
MARKERS = "osD^vPX<>*hd"
QUALITY = {"r2": "R²", "accuracy": "accuracy"}


def figures(cells: pd.DataFrame) -> Iterator[tuple[str, Figure]]:
    """Draws every figure of the suites that have cells, each with its name.

    Args:
        cells: All cells.
    """
    for suite in (suite for suite in SUITES if suite in set(cells["suite"])):
        design = policy_view(cells, View(suite))
        if design.possible:
            title = f"{suite}: the six policies, the paper's reward, and the dense network"
            yield f"paper-ranks-{suite}", critical_difference(design.ranks, design.pairs, title)
        yield f"paper-fractions-{suite}", _fractions(cells, suite)
        yield f"paper-cost-{suite}", _cost(cells, suite)


def save(cells: pd.DataFrame, folder: Path) -> list[str]:
    """Writes the figures into a folder as PNG; gives their names."""
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for name, figure in figures(cells):
        figure.savefig(folder / f"{name}.png", dpi=DPI, metadata={"Software": None})
        names.append(name)
    return names


def retained(cells: pd.DataFrame, view: View) -> pd.DataFrame:
    """Gives score less that of the dense network, not trained further, by label and fraction: [k, fractions].

    Means over settings of means over draws; R^2 below 0 counts as 0 on both sides.
    """
    rows = seen(cells, view)
    rows = rows[rows["fraction"] > 0]
    dense = rows["dense_score"].where((rows["metric"] != "r2") | (rows["dense_score"] > 0), 0.0)
    changes = rows.assign(change=rows["score"] - dense)
    means = changes.groupby(["label", "fraction", "setting"])["change"].mean()
    return means.groupby(["label", "fraction"]).mean().unstack()


def _fractions(cells: pd.DataFrame, suite: str) -> Figure:
    """Draws the change from the dense network over the fraction that went, without and with further training."""
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2, sharey=True)
    for panel, tuned in zip(panels, (False, True), strict=True):
        table = retained(cells, View(suite, tuned))
        for marker, name in zip(MARKERS, [name for name in SHOWN if name in table.index], strict=False):
            line = table.loc[name].dropna()
            panel.plot(line.index, line, marker=marker, markersize=4, linewidth=1.2, label=name)
        panel.axhline(0, color="grey", linewidth=0.8)
        panel.set_xlabel("fraction of hidden neurons removed" if suite != DEEP else "fraction removed")
        panel.set_title("trained a little further" if tuned else "as cut", fontsize=10)
    panels[0].set_ylabel(f"{_measure(cells, suite)}, less dense")
    lines, names = panels[0].get_legend_handles_labels()
    figure.legend(lines, names, fontsize=7, ncols=4, loc="outside lower center")
    return figure


def _cost(cells: pd.DataFrame, suite: str) -> Figure:
    """Draws what is left against what the search sent forward, a point a method, means over all fractions."""
    view = View(suite)
    rows = seen(cells, view)
    pruned = rows[rows["fraction"] > 0]
    left = retained(cells, view).mean(axis=1)
    tokens = pruned.groupby("label")["tokens"].mean().clip(lower=1)
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    panel: Axes = figure.subplots()
    for name in left.index:
        colour = "C0" if name in SIX else "C1" if name in SIX_KL else "C2" if name in CRITERIA else "C3"
        panel.scatter(tokens[name], left[name], color=colour, s=24)
        if name in SHOWN:
            place = tokens[name], left[name]
            panel.annotate(str(name), place, fontsize=7, xytext=(5, 3), textcoords="offset points")
    for colour, text in zip(
        ("C0", "C1", "C2", "C3"), ("policies", "policies, KL", "no pulls", "other searches"), strict=True
    ):
        panel.scatter([], [], color=colour, s=24, label=text)
    panel.axhline(0, color="grey", linewidth=0.8)
    panel.set_xscale("log")
    panel.margins(x=0.15)
    panel.set_xlabel("rows or tokens that the search sent forward")
    panel.set_ylabel(f"{_measure(cells, suite)}, less dense")
    panel.legend(fontsize=7)
    return figure


def _measure(cells: pd.DataFrame, suite: str) -> str:
    """Names the quality of a suite."""
    metrics = sorted(cells.loc[cells["suite"] == suite, "metric"].unique())
    return " / ".join(QUALITY.get(name, name) for name in metrics)
