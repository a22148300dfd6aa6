"""Figures of one run: the widths that are kept, the effects of the arms, the course of the search, and all sizes.

Symbols: K arms; L layers. The effect of an arm is minus its mean reward, so more is worse.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from hf_mabprune.arms import KINDS
from hf_mabprune.artifacts.tables import kept_by_layer, layer_labels
from hf_mabprune.errors import beginning, one_line
from hf_mabprune.evaluation.report import Report

Floats = NDArray[np.float64]

# Okabe and Ito's colours: told apart with every common kind of colour blindness.
KEPT, REMOVED, GREY = "#0072B2", "#D55E00", "#767676"
WHOLE = "#E4E4E4"
DPI = 150
QUIET = np.errstate(invalid="ignore", over="ignore")  # what is not finite is left out of a drawing, without a word
LABELLED_LAYERS = 40
LONGEST_LABEL = 40
UNITS = {"neuron": "FFN neurons", "head": "query heads", "expert": "experts", "layer": "layers"}
ARMS = {"neuron": "FFN neuron arms", "head": "Attention head arms", "expert": "Expert arms", "layer": "Layer arms"}
EFFECTS = {
    "kl": "rise in KL divergence (nats)",
    "loss": "rise in loss (nats)",
    "squared": "rise in squared loss change (nats²)",
    "accuracy": "fall in accuracy (fraction)",
}


@QUIET
def save_figures(report: Report, arms: pd.DataFrame, folder: Path) -> list[Path]:
    """Writes kept_widths.png, effects.png, search.png and, where several sizes were cut, pareto.png.

    Args:
        report: Report of the run.
        arms: Table of arms, [K rows], with the columns site, kind, index, pulls, mean (mean reward when last pulled)
            and kept.
        folder: Folder for the files, made if it is not there.

    Returns:
        The files, in that order.
    """
    figures = {
        "kept_widths": kept_widths(report),
        "effects": effects(arms, report.search.reward),
        "search": search(report),
    }
    if len(report.sizes) > 1:
        figures["pareto"] = pareto(report)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, figure in figures.items():
        paths.append(folder / f"{name}.png")
        _save(figure, paths[-1])
    return paths


def kept_widths(report: Report) -> Figure:
    """Draws one bar a layer: the units kept, on top of the units before."""
    kinds = [kind for kind in KINDS if report.kept.get(kind)]
    labels = layer_labels([site for kind in kinds for site in report.kept[kind]])
    layers = {kind: kept_by_layer(report.kept[kind], labels) for kind in kinds}
    tallest = max((len(layers[kind]) for kind in kinds), default=1)
    figure, panels = _figure(1, len(kinds), height=1.5 + 0.26 * min(max(tallest, 4), LABELLED_LAYERS))
    for panel, kind in zip(panels, kinds, strict=True):
        _draw_widths(panel, kind, layers[kind])
    return figure


def effects(arms: pd.DataFrame, reward: str) -> Figure:
    """Draws one dot an arm, by layer: what its removal did when last pulled; removed arms apart from kept ones."""
    labels = layer_labels(arms["site"].unique().tolist())
    names = list(dict.fromkeys(labels.values()))
    arms = arms.assign(place=arms["site"].map(lambda site: names.index(labels[site])))
    shown = arms[_measured(arms)].assign(effect=lambda rows: -rows["mean"])
    kinds = [kind for kind in KINDS if (arms["kind"] == kind).any()]
    figure, panels = _figure(len(kinds), 1, height=0.6 + 3.1 * max(len(kinds), 1))
    for panel, kind in zip(panels, kinds, strict=True):
        _draw_effects(panel, kind, shown[shown["kind"] == kind], EFFECTS.get(reward, f"minus reward {plain(reward)}"))
        shown_names = range(0, len(names), -(-len(names) // 24))
        panel.set_xticks(shown_names, [plain(names[number]) for number in shown_names])
        panel.set_xlim(-0.6, len(names) - 0.4)
    figure.supxlabel(_effects_caption(arms), fontsize=8, color=GREY)
    return figure


def search(report: Report) -> Figure:
    """Draws KL divergence and loss of one batch after every round, over how much of the target is reached."""
    rounds = pd.DataFrame(report.search.rounds, columns=["removed_fraction", "kl", "loss", "loss_before"], dtype=float)
    figure, (upper, lower) = _figure(2, 1, height=5.4, sharex=True)
    x = 100 * rounds["removed_fraction"]
    upper.plot(x, rounds["kl"], color=REMOVED, marker="o", zorder=3)
    upper.set_ylabel("KL divergence from\nthe dense model (nats)")
    _scale(upper, rounds["kl"].to_numpy())
    lower.plot(x, rounds["loss"], color=REMOVED, marker="o", label="pruned so far", zorder=3)
    lower.plot(x, rounds["loss_before"], color=KEPT, marker="s", linestyle="--", label="dense, same batch")
    lower.set_ylabel("loss (nats)")
    lower.set_xlabel("progress of the removal (% of the target)")
    lower.set_xlim(0, 104)
    lower.legend(frameon=False, fontsize=9)
    _title(upper, _search_title(report))
    before = ", before the refit" if report.compensation else ""
    caption = f"Each round is measured on one calibration batch{before}, not on the test split."
    figure.supxlabel(caption, fontsize=8, color=GREY)
    return figure


@QUIET
def save_pareto(report: Report, folder: Path) -> Path:
    """Writes pareto.png alone."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "pareto.png"
    _save(pareto(report), path)
    return path


def _save(figure: Figure, path: Path) -> None:
    """Writes a figure; signs that the font lacks are boxes, without a word."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph ")
        figure.savefig(path, dpi=DPI)


def pareto(report: Report) -> Figure:
    """Draws quality against parameters, MACs and measured latency, for all sizes of a run and random draws of each."""
    sizes = sorted(report.sizes, key=lambda size: -size.parameters)
    before = report.before
    costs = [
        ("parameters (M)", [size.parameters / 1e6 for size in sizes], before.parameters / 1e6),
        ("MACs of one sequence (M)", [size.macs / 1e6 for size in sizes], before.macs / 1e6),
        ("latency, share of the dense", [1 / size.speedup for size in sizes if size.speedup], 1.0),
    ]
    figure, panels = _figure(1, len(costs), height=3.6, sharey=True)
    low, high = np.array([size.interval for size in sizes]).T
    whole_low, whole_high = before.intervals[report.main_metric]
    for panel, (label, cost, whole) in zip(panels, costs, strict=True):
        panel.set_xlabel(label)
        panel.scatter([whole], [before.metrics[report.main_metric]], color=GREY, marker="s", label="dense")
        panel.axhspan(whole_low, whole_high, color=WHOLE, alpha=0.6, linewidth=0)
        if len(cost) == len(sizes):
            metric = np.array([size.metric for size in sizes])
            bars = np.array([metric - low, high - metric])
            panel.errorbar(cost, metric, bars, color=KEPT, marker="o", label="pruned", zorder=3)
            chance = [size.random for size in sizes]
            panel.plot(cost, chance, color=REMOVED, marker="x", linestyle="--", label="random, mean")
        panel.set_xlim(0, 1.05 * whole)
    panels[0].set_ylabel(
        f"{plain(report.main_metric)}\n({'higher' if report.greater_is_better else 'lower'} is better)"
    )
    panels[0].legend(frameon=False, fontsize=8)
    _title(panels[0], f"{len(sizes)} sizes from one search")
    figure.supxlabel("Bars and the grey band: 95% bootstrap intervals over test examples.", fontsize=8, color=GREY)
    return figure


def _figure(
    rows: int, columns: int, height: float, sharex: bool = False, sharey: bool = False
) -> tuple[Figure, Sequence[Axes]]:
    """Makes a figure of its own, outside pyplot, with plain panels."""
    figure = Figure(figsize=(8.5, height), layout="constrained")
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(max(rows, 1), max(columns, 1), squeeze=False, sharex=sharex, sharey=sharey).flat)
    for panel in panels:
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(axis="y", color=WHOLE, linewidth=0.7)
        panel.set_axisbelow(True)
    return figure, panels[: rows * columns]


def plain(name: str) -> str:
    """Gives a name as a figure shows it as it is, for a $ would begin a formula; of a long one the beginning."""
    return beginning(one_line(name), LONGEST_LABEL).replace("$", r"\$")


def _title(panel: Axes, text: str) -> None:
    panel.set_title(text, fontsize=10, loc="left")


def _draw_widths(panel: Axes, kind: str, layers: dict[str, tuple[int, int]]) -> None:
    numbers = np.arange(len(layers))
    kept, whole = (np.array([counts[part] for counts in layers.values()]) for part in (0, 1))
    panel.barh(numbers, whole, color=WHOLE, height=0.72)
    panel.barh(numbers, kept, color=KEPT, height=0.72)
    if len(numbers) <= LABELLED_LAYERS:
        for number, part, total in zip(numbers, kept, whole, strict=True):
            panel.annotate(f"{part:,}", (total, number), (4, 0), textcoords="offset points", va="center", fontsize=8)
    step = -(-len(numbers) // 24)
    panel.set_yticks(numbers[::step], [plain(name) for name in list(layers)[::step]])
    panel.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    panel.set(xlabel=f"number of {UNITS[kind]} (grey: before)", ylabel="layer", xlim=(0, 1.12 * max(whole)))
    margin = max(0.6, (4 - len(numbers)) / 2)
    panel.set_ylim(numbers[-1] + margin, numbers[0] - margin)
    panel.grid(visible=False)
    _title(panel, f"{kept.sum():,} of {whole.sum():,} {UNITS[kind]} are kept ({kept.sum() / whole.sum():.0%})")


def _measured(arms: pd.DataFrame) -> "pd.Series[bool]":
    """Tells which arms have a mean, [K]: those that were pulled."""
    return (arms["pulls"] > 0) & pd.Series(np.isfinite(arms["mean"].to_numpy(dtype=float)), index=arms.index)


def _draw_effects(panel: Axes, kind: str, arms: pd.DataFrame, label: str) -> None:
    panel.set_ylabel(label)
    panel.set_xlabel("layer")
    if arms.empty:
        _title(panel, f"{ARMS[kind]}: none was pulled")
        return
    _scale(panel, arms["effect"].to_numpy())
    groups = [("removed", arms[~arms["kept"]], REMOVED, "v", -0.36), ("kept", arms[arms["kept"]], KEPT, "o", 0.04)]
    size = float(np.clip(4000 / len(arms), 3, 28))
    for name, rows, colour, marker, left in groups:
        x = rows["place"] + left + 0.32 * _spread(rows)
        name = f"{name} ({len(rows):,})"
        panel.scatter(x, rows["effect"], s=size, color=colour, marker=marker, alpha=0.6, linewidths=0, label=name)
    legend = panel.legend(frameon=False, fontsize=9, loc="lower right", bbox_to_anchor=(1.0, 0.98), ncols=2)
    for handle in filter(None, legend.legend_handles):
        handle.set(sizes=[28], alpha=1.0)
    medians = [f"{name} {rows['effect'].median():.2g}" for name, rows, *_ in groups if len(rows)]
    _title(panel, f"{ARMS[kind]}, median effect: " + ", ".join(medians))


def _spread(arms: pd.DataFrame) -> "pd.Series[float]":
    """Gives places in [0, 1], one a row, that keep the arms of a layer apart, in the order of their index."""
    return arms.groupby("place")["index"].rank(pct=True)


def _effects_caption(arms: pd.DataFrame) -> str:
    missing = int((~_measured(arms)).sum())
    left_out = f"{missing:,} of {len(arms):,} arms were never pulled and are left out. " if missing else ""
    return f"{left_out}Each arm is shown as it was last measured; left of a layer's tick: removed, right of it: kept."


def _scale(panel: Axes, values: Floats) -> None:
    """Sets the axis: log where all is positive and far apart, symmetric log where signs differ, else linear."""
    values = values[np.isfinite(values)]
    sizes = np.abs(values[values != 0])
    if len(sizes) == 0 or sizes.max() < 30 * sizes.min():
        return
    if (values > 0).all():
        panel.set_yscale("log")
        return
    smallest = max(float(np.quantile(sizes, 0.1)), float(sizes.max()) * 1e-6)
    threshold = 10 ** np.floor(np.log10(smallest))
    panel.set_yscale("symlog", linthresh=threshold, linscale=1.0)
    panel.axhline(0, color=GREY, linewidth=0.8)


def _search_title(report: Report) -> str:
    rounds = report.search.rounds
    if not rounds:
        return "No round was run"
    last = rounds[-1]
    count = "1 round" if len(rounds) == 1 else f"{len(rounds)} rounds"
    change = last["loss"] - last["loss_before"]
    return (
        f"After {count} and {last['pulls']:,} pulls, {last['removed']:,} of {report.search.arms:,} arms are removed: "
        f"KL {last['kl']:.2g}, loss {change:+.2g} on one calibration batch"
    )
