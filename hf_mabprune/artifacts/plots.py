"""Figures of one run: the widths that are kept, the effects of the arms, the course of the search, and all sizes.

Symbols: K arms; L layers. The effect of an arm is minus its mean reward, so more is worse.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
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
from hf_mabprune.evaluation.figures import SizeFigures
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
    placed_arms = placed(arms)
    kinds = [kind for kind in KINDS if (arms["kind"] == kind).any()]
    figure, panels = _figure(len(kinds), 1, height=0.6 + 3.1 * max(len(kinds), 1))
    for panel, kind in zip(panels, kinds, strict=True):
        draw_effects(panel, kind, placed_arms, reward)
    figure.supxlabel(_effects_caption(arms), fontsize=8, color=GREY)
    return figure


def placed(arms: pd.DataFrame) -> pd.DataFrame:
    """Gives the arms with `place`, the number of their layer among those that there are, and `label`, its name."""
    labels = layer_labels(arms["site"].unique().tolist())
    names = list(dict.fromkeys(labels.values()))
    label = arms["site"].map(labels)
    return arms.assign(label=label, place=label.map(names.index))


def search(report: Report) -> Figure:
    """Draws KL divergence and loss of one batch after every round, over how much of the target is reached."""
    rounds = _rounds(report)
    figure, (upper, lower) = _figure(2, 1, height=5.4, sharex=True)
    x = 100 * rounds["removed_fraction"]
    draw_divergence(upper, report)
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


def _rounds(report: Report) -> pd.DataFrame:
    columns = ["removed_fraction", "kl", "loss", "loss_before"]
    return pd.DataFrame(report.search.rounds, columns=columns, dtype=float)


def draw_divergence(panel: Axes, report: Report) -> None:
    """Draws the KL divergence of one batch after every round."""
    rounds = _rounds(report)
    panel.plot(100 * rounds["removed_fraction"], rounds["kl"], color=REMOVED, marker="o", zorder=3)
    panel.set_ylabel("KL divergence from\nthe dense model (nats)")
    _scale(panel, rounds["kl"].to_numpy())


@QUIET
def save_pareto(report: Report, folder: Path) -> Path:
    """Writes pareto.png alone."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "pareto.png"
    _save(pareto(report), path)
    return path


def _save(figure: Figure, path: Path) -> None:
    """Writes a figure."""
    with without_glyph_warnings():
        figure.savefig(path, dpi=DPI)


@contextmanager
def without_glyph_warnings() -> Iterator[None]:
    """Says nothing of signs that the font lacks, which are drawn as boxes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph ")
        yield


@dataclass(frozen=True)
class CostOfSizes:
    """Something that a model costs.

    Attributes:
        label: What it is.
        sizes: Of each size, from the largest model to the smallest; none where it was not measured of all.
        whole: Of the dense model.
    """

    label: str
    sizes: list[float]
    whole: float


def costs_of(report: Report) -> list[CostOfSizes]:
    """Lists what the quality of all sizes is drawn against."""
    sizes, before = _by_size(report), report.before
    speedups = [size.speedup for size in sizes if size.speedup]
    return [
        CostOfSizes("parameters (M)", [size.parameters / 1e6 for size in sizes], before.parameters / 1e6),
        CostOfSizes("MACs of one sequence (M)", [size.macs / 1e6 for size in sizes], before.macs / 1e6),
        CostOfSizes(
            "latency, share of the dense",
            [1 / speedup for speedup in speedups] if len(speedups) == len(sizes) else [],
            1.0,
        ),
    ]


def _by_size(report: Report) -> list[SizeFigures]:
    return sorted(report.sizes, key=lambda size: -size.parameters)


def pareto(report: Report) -> Figure:
    """Draws quality against parameters, MACs and measured latency, for all sizes of a run and random draws of each."""
    costs = costs_of(report)
    figure, panels = _figure(1, len(costs), height=3.6, sharey=True)
    for panel, cost in zip(panels, costs, strict=True):
        draw_pareto(panel, report, cost)
    for panel in panels[1:]:
        panel.set_ylabel("")
        if legend := panel.get_legend():
            legend.remove()
    _title(panels[0], f"{len(report.sizes)} sizes from one search")
    figure.supxlabel("Bars and the grey band: 95% bootstrap intervals over test examples.", fontsize=8, color=GREY)
    return figure


def draw_pareto(panel: Axes, report: Report, cost: CostOfSizes) -> None:
    """Draws the quality of all sizes against something that they cost."""
    sizes, before, name = _by_size(report), report.before, report.main_metric
    panel.set_xlabel(cost.label)
    panel.set_ylabel(f"{plain(name)}\n({'higher' if report.greater_is_better else 'lower'} is better)")
    panel.scatter([cost.whole], [before.metrics[name]], color=GREY, marker="s", label="dense", zorder=3)
    panel.axhspan(*before.intervals[name], color=WHOLE, alpha=0.6, linewidth=0)
    if cost.sizes:
        metric = np.array([size.metric for size in sizes])
        low, high = np.array([size.interval for size in sizes]).T
        panel.errorbar(
            cost.sizes,
            metric,
            np.array([metric - low, high - metric]),
            color=KEPT,
            marker="o",
            label="pruned",
            zorder=3,
        )
        chance = [(x, size.random) for x, size in zip(cost.sizes, sizes, strict=True) if size.random is not None]
        if chance:
            panel.plot(*zip(*chance, strict=True), color=REMOVED, marker="x", linestyle="--", label="random, mean")
    panel.set_xlim(0, 1.05 * cost.whole)
    panel.legend(frameon=False, fontsize=8)


def _figure(
    rows: int, columns: int, height: float, sharex: bool = False, sharey: bool = False
) -> tuple[Figure, Sequence[Axes]]:
    """Makes a figure of its own, outside pyplot, with plain panels."""
    figure = Figure(figsize=(8.5, height), layout="constrained")
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(max(rows, 1), max(columns, 1), squeeze=False, sharex=sharex, sharey=sharey).flat)
    for panel in panels:
        plain_panel(panel)
    return figure, panels[: rows * columns]


def plain_panel(panel: Axes) -> None:
    """Leaves out of a panel what says nothing."""
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(axis="y", color=WHOLE, linewidth=0.7)
    panel.set_axisbelow(True)


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


def measured(arms: pd.DataFrame) -> "pd.Series[bool]":
    """Tells which arms have a mean, [K]: those that were pulled."""
    return (arms["pulls"] > 0) & pd.Series(np.isfinite(arms["mean"].to_numpy(dtype=float)), index=arms.index)


def draw_effects(panel: Axes, kind: str, arms: pd.DataFrame, reward: str) -> None:
    """Draws one dot an arm of a kind, by layer; `arms` are those of `placed`."""
    names = list(dict.fromkeys(arms.sort_values("place")["label"]))
    shown_names = range(0, len(names), -(-len(names) // 24))
    panel.set_xticks(shown_names, [plain(names[number]) for number in shown_names])
    panel.set_xlim(-0.6, len(names) - 0.4)
    panel.set_ylabel(EFFECTS.get(reward, f"minus reward {plain(reward)}"))
    panel.set_xlabel("layer")
    arms = arms[measured(arms) & (arms["kind"] == kind)].assign(effect=lambda rows: -rows["mean"])
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
    missing = int((~measured(arms)).sum())
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
