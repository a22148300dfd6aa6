"""Figures of a page: narrow ones, that a phone shows at full size, as SVG that follows the page into the dark."""

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure

from hf_mabprune.arms import KINDS
from hf_mabprune.artifacts import plots
from hf_mabprune.evaluation.report import Report

WIDTH, HEIGHT = 4.0, 2.8  # inches; 72 of the units of the SVG each
MANY_DOTS = 300  # that are drawn as one image, for each would take some 100 bytes
COLOURS = {  # what a figure is drawn with -> its name on the page, by light and by dark
    "#000000": ("ink", "#1b1f24", "#e6e8eb"),
    plots.GREY.lower(): ("quiet", "#5b6470", "#a0a8b3"),
    plots.WHOLE.lower(): ("line", "#dfe3e8", "#3a424d"),
    plots.KEPT.lower(): ("kept", "#0072b2", "#56b4e9"),
    plots.REMOVED.lower(): ("removed", "#d55e00", "#ff9d4d"),
}
STYLE = (
    "<style>svg{{{}}} @media screen and (prefers-color-scheme:dark){{svg{{{}}}}} text{{fill:var(--ink)}}</style>"
).format(*(";".join(f"--{name}:{shades[dark]}" for name, *shades in COLOURS.values()) for dark in (0, 1)))


@dataclass(frozen=True)
class Picture:
    """A figure, as an `img` shows it.

    Attributes:
        source: Its address, which holds the SVG itself.
        alt: What it shows, for those who cannot see it.
        caption: What stands below it.
    """

    source: str
    alt: str
    caption: str


def pareto(report: Report) -> list[Picture]:
    """Draws quality against each cost of all sizes; nothing where there is one size."""
    if len(report.sizes) < 2:
        return []
    metric = report.main_metric
    models = f"{metric} of {len(report.sizes)} sizes, of the dense model and of random draws"
    return [
        _picture(partial(plots.draw_pareto, report=report, cost=cost), f"{models}, against {cost.label}")
        for cost in plots.costs_of(report)
    ]


def effects(arms: pd.DataFrame, reward: str) -> list[Picture]:
    """Draws what the removal of each arm did, one figure a kind of arms of which any was measured."""
    places = plots.placed(arms)
    told = "by layer: what the removal of each did when it was last pulled, removed ones apart from kept ones"
    return [
        _picture(partial(plots.draw_effects, kind=kind, arms=places, reward=reward), f"{plots.ARMS[kind]} {told}")
        for kind in KINDS
        if ((arms["kind"] == kind) & plots.measured(arms)).any()
    ]


def course(report: Report) -> Picture | None:
    """Draws the divergence after each round of the search; nothing where there was one round."""
    if len(report.search.rounds) < 2:
        return None
    told = (
        f"KL divergence from the dense model on a calibration batch after each of {len(report.search.rounds)} rounds"
    )
    return _picture(partial(plots.draw_divergence, report=report), told)


@plots.QUIET
def _picture(draw: Callable[[Axes], None], alt: str) -> Picture:
    """Draws one panel; many dots become an image inside of the SVG."""
    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    FigureCanvasSVG(figure)
    panel = figure.subplots()
    plots.plain_panel(panel)
    draw(panel)
    caption = panel.get_title("left").replace(r"\$", "$")
    panel.set_title("", loc="left")
    if legend := panel.get_legend():
        drawn, names = panel.get_legend_handles_labels()
        pairs = zip(drawn, filter(None, legend.legend_handles), strict=True)
        handles = [whole if isinstance(whole, ErrorbarContainer) else shown for whole, shown in pairs]
        legend.remove()
        figure.legend(handles, names, loc="outside upper left", ncols=3, frameon=False, fontsize=9)
    for dots in panel.collections:
        dots.set_rasterized(len(np.asarray(dots.get_offsets())) > MANY_DOTS)
    written = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "mabprune"}), plots.without_glyph_warnings():
        figure.savefig(written, format="svg", dpi=plots.DPI, transparent=True, metadata={"Date": None})
    text = written.getvalue()
    text = text[text.index("<svg") :]
    for colour, (name, *_) in COLOURS.items():
        text = text.replace(colour, f"var(--{name})")
    start = text.index(">") + 1
    data = base64.b64encode(f"{text[:start]}{STYLE}{text[start:]}".encode()).decode()
    return Picture(f"data:image/svg+xml;base64,{data}", alt, caption)
