"""The Markdown tables of the model cards: figures before, after and at random; sizes kept in each layer; several sizes
of one search. The tables for a terminal are views of the report, in `evaluation.terminal_table`."""

import re
from collections.abc import Iterable, Mapping, Sequence
from urllib.parse import quote

from hf_mabprune.arms import KINDS
from hf_mabprune.artifacts.markdown import code, text
from hf_mabprune.artifacts.redaction import without_paths
from hf_mabprune.artifacts.run_folder import RunFolder
from hf_mabprune.evaluation.figures import ModelFigures, PlaceFigures
from hf_mabprune.evaluation.report import Report
from hf_mabprune.tasks.base import TASKS

UNITS = {"neuron": "FFN neurons", "head": "attention heads", "expert": "experts", "layer": "layers"}
LONG_TABLE = 16  # layers; longer tables are folded away
LAYER = re.compile(r"(?P<stack>.+?)\.(?P<number>\d+)(\.|$)")  # how the name of a site begins
Kept = Mapping[str, Mapping[str, tuple[int, int]]]


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Lays cells, which are Markdown, out as a table; columns of figures that are empty throughout are left out."""
    rows = list(rows)
    columns = [column for column in range(len(headings)) if column == 0 or any(row[column] for row in rows)]
    lines = [headings, ["---"] + ["---:"] * (len(headings) - 1), *rows]
    return "\n".join("| " + " | ".join(line[column] for column in columns) + " |" for line in lines)


def results_table(report: Report) -> str:
    """Lays out before | after | every control, all metrics of the test split among their columns."""
    rows = {"before": report.before, "**after**": report.after}
    rows |= {text(name): figures for name, figures in report.controls().items()}
    return figures_table(rows, report.main_metric)


def figures_table(rows: Mapping[str, ModelFigures], main_metric: str) -> str:
    """Lays out a line a model, all metrics among the columns, the main one first.

    Args:
        rows: Name, which is Markdown -> model; the metrics are those of the last.
        main_metric: Metric to begin with.
    """
    measured = list(rows.values())[-1].metrics
    metrics = [main_metric, *(name for name in measured if name != main_metric)]
    headings = ["", "parameters (M)", "MACs (M)", *map(text, metrics), "loss", "KL", "latency (ms)", "weights (MB)"]
    headings.append("after, above it")
    return markdown_table(headings, [[name, *_cells(figures, metrics)] for name, figures in rows.items()])


def places_table(places: Sequence[PlaceFigures]) -> str:
    """Lays out where the checkpoint was tried, how it is loaded there, and how far it is from plain Auto classes."""
    rows = [[text(row.place), code(row.recipe), text(without_paths(str(row)))] for row in places]
    lines = [["place", "how, for a checkpoint in DIR", "largest difference"], ["---"] * 3, *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def kept_table(kept: Kept) -> str:
    """Lays out what each layer keeps, folded away where there are many layers.

    Args:
        kept: kind -> name of the site -> (units kept, units before).
    """
    kinds = [kind for kind in KINDS if kept.get(kind)]
    layers = layer_labels([site for kind in kinds for site in kept[kind]])
    counts = [kept_by_layer(kept[kind], layers) for kind in kinds]
    rows = [
        [text(label), *("{:,} of {:,}".format(*sums[label]) if label in sums else "" for sums in counts)]
        for label in dict.fromkeys(layers.values())
    ]
    table = markdown_table(["layer", *(UNITS[kind] for kind in kinds)], rows)
    if len(rows) <= LONG_TABLE:
        return table
    return f"<details>\n<summary>{len(rows)} layers</summary>\n\n{table}\n\n</details>"


def layer_labels(sites: Sequence[str]) -> dict[str, str]:
    """Names the layer of each site for people, in the order of stacks and layers: its number, and its stack where
    there are several.

    Returns:
        Name of a site -> label, layers in order.
    """
    found = {site: LAYER.match(site) for site in sites}
    stacks = list(dict.fromkeys(match["stack"] for match in found.values() if match))
    places = {
        site: (stacks.index(match["stack"]), int(match["number"])) if match else (len(stacks), 0)
        for site, match in found.items()
    }
    labels = {}
    for site in sorted(found, key=lambda site: places[site]):
        stack, number = places[site]
        name = f"{stacks[stack].partition('.')[0]} " if len(stacks) > 1 and stack < len(stacks) else ""
        labels[site] = f"{name}{number}" if stack < len(stacks) else site
    return labels


def kept_by_layer(kept: Mapping[str, tuple[int, int]], labels: Mapping[str, str]) -> dict[str, tuple[int, int]]:
    """Adds up what the sites of each layer keep: label -> (units kept, units before)."""
    sums: dict[str, tuple[int, int]] = {}
    for site, label in labels.items():
        if site in kept:
            earlier = sums.get(label, (0, 0))
            sums[label] = (earlier[0] + kept[site][0], earlier[1] + kept[site][1])
    return sums


def sizes_table(reports: Sequence[Report]) -> str:
    """Lays out the sizes of one search below the dense model, each with a link to the card in its folder.

    Args:
        reports: One a size, of the same search.
    """
    first = reports[0]
    metric = first.main_metric
    headings = ["size", "layout", "parameters (M)", "MACs (M)", text(metric), "random, mean", "speed-up", "load"]
    dense = ["dense", "", f"{first.before.parameters / 1e6:,.2f}", f"{first.before.macs / 1e6:,.2f}"]
    rows = [[*dense, metric_in_words(first.before, metric), "", "", ""]]
    for size, report in zip((report.in_short() for report in reports), reports, strict=True):
        rows.append(
            [
                f"[{text(size.name)}]({quote(RunFolder(size.name).card.as_posix())})",
                text(size.layout),
                f"{size.parameters / 1e6:,.2f}",
                f"{size.macs / 1e6:,.2f}",
                metric_in_words(report.after, metric),
                "" if size.random is None else f"{size.random:.4f}",
                f"{size.speedup:.2f}x" if size.speedup else "",
                code(f'{TASKS.get(report.task).auto_class}.from_pretrained("{size.name}")'),
            ]
        )
    return markdown_table(headings, rows)


def _cells(figures: ModelFigures, metrics: Sequence[str]) -> list[str]:
    return [
        f"{figures.parameters / 1e6:,.2f}",
        f"{figures.macs / 1e6:,.2f}",
        *(metric_in_words(figures, name) for name in metrics),
        f"{figures.loss:.4f}",
        "" if figures.kl is None else f"{figures.kl:.4f}",
        "" if figures.latency_ms is None else f"{figures.latency_ms:.1f}",
        "" if figures.checkpoint_bytes is None else f"{figures.checkpoint_bytes / 1e6:,.1f}",
        difference_in_words(figures.behind, figures.metrics[metrics[0]]) if figures.behind else "",
    ]


def metric_in_words(figures: ModelFigures, name: str) -> str:
    """Writes the value with its interval, e.g. 0.919 (0.899 to 0.935)."""
    value = figures.metrics[name]
    if name not in figures.intervals:
        return number_in_words(value)
    digits = _digits(value)
    low, high = figures.intervals[name]
    return f"{value:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def number_in_words(value: float) -> str:
    """Writes a metric: with four decimals, or two where it is large."""
    return f"{value:.{_digits(value)}f}"


def difference_in_words(values: Sequence[float], of: float) -> str:
    """Writes a difference with its interval, e.g. +0.019 (+0.012 to +0.035), as exactly as its metric."""
    value, low, high = (signed_in_words(number, of) for number in values)
    return f"{value} ({low} to {high})"


def signed_in_words(value: float, of: float) -> str:
    """Writes a difference with its sign."""
    return f"{value:+.{_digits(of)}f}"


def _digits(value: float) -> int:
    return 4 if abs(value) < 10 else 2
