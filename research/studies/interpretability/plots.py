"""The figures of the study: accuracy and score against the rate, and against each other."""

from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from research.studies.interpretability.estimates import over_seeds
from research.studies.interpretability.protocol import KINDS, SCHEDULES
from research.studies.interpretability.rows import UNPRUNED, UNTRAINED, control, pruned

DPI = 110
MEASURES = {"accuracy": "accuracy", "mis": "MIS of the units that are left"}
MARKERS = "osD^v"


def save(cells: pd.DataFrame, folder: Path) -> list[str]:
    """Writes the figures of every network into a folder as PNG; gives their names."""
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for network in dict.fromkeys(cells["network"]):
        for kind, draw in (("rates", _rates), ("accuracy", _accuracy)):
            name = f"interpretability-{kind}-{network}"
            draw(cells, network).savefig(folder / f"{name}.png", dpi=DPI, metadata={"Software": None})
            names.append(name)
    return names


def _rates(cells: pd.DataFrame, network: str) -> Figure:
    """Draws accuracy (above) and score (below) over the rate: a panel a schedule, a line a kind."""
    rows = pruned(cells, network)
    schedules = [name for name in SCHEDULES if name in set(rows["schedule"])]
    figure = Figure(figsize=(3 * len(schedules) + 1, 6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(MEASURES), len(schedules), sharey="row", squeeze=False)
    for line, (measure, words) in zip(panels, MEASURES.items(), strict=True):
        before = control(cells, network, UNPRUNED)[measure].mean()
        for panel, schedule in zip(line, schedules, strict=True):
            panel.axhline(before, color="grey", linewidth=0.8, linestyle="--")
            _lines(panel, rows[rows["schedule"] == schedule], measure)
            panel.set_xlabel("rate")
        line[0].set_ylabel(words)
    for panel, schedule in zip(panels[0], schedules, strict=True):
        panel.set_title(schedule, fontsize=9)
    lines, names = panels[0][0].get_legend_handles_labels()
    figure.legend(lines, names, fontsize=8, ncols=len(names), loc="outside lower center")
    return figure


def _lines(panel: Axes, rows: pd.DataFrame, measure: str) -> None:
    """Draws a line a kind, with the range of its seeds."""
    for marker, kind in zip(MARKERS, [kind for kind in KINDS if kind in set(rows["kind"])], strict=False):
        by_rate = rows[rows["kind"] == kind].groupby("rate")[measure]
        means = by_rate.mean()
        # Of equal numbers the mean may be another by a rounding.
        spans = [(means - by_rate.min()).clip(lower=0), (by_rate.max() - means).clip(lower=0)]
        panel.errorbar(means.index, means, spans, marker=marker, markersize=4, linewidth=1.2, capsize=2, label=kind)


def _accuracy(cells: pd.DataFrame, network: str) -> Figure:
    """Draws score against accuracy, a point a cell."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    panel: Axes = figure.subplots()
    rows = pruned(cells, network)
    for marker, kind in zip(MARKERS, [kind for kind in KINDS if kind in set(rows["kind"])], strict=False):
        part = rows[rows["kind"] == kind]
        panel.scatter(part["accuracy"], part["mis"], s=22, marker=marker, label=kind)
    for name, colour in ((UNPRUNED, "black"), (UNTRAINED, "grey")):
        found = control(cells, network, name)
        panel.scatter(found["accuracy"], found["mis"], s=60, marker="*", color=colour, label=name)
    chance = over_seeds(list(rows["shuffled"])).value
    panel.axhline(chance, color="grey", linewidth=0.8, linestyle=":")
    panel.set_xlabel(MEASURES["accuracy"])
    panel.set_ylabel(MEASURES["mis"])
    panel.legend(fontsize=8)
    return figure
