"""The Markdown tables of the model cards: figures before, after and at random; sizes kept in each layer; several sizes
of one search. The tables for a terminal are views of the report, in `evaluation.report`."""

from collections.abc import Iterable, Sequence

from hf_mabprune.arms import KINDS
from hf_mabprune.artifacts.run_folder import RunFolder
from hf_mabprune.evaluation.report import ModelFigures, Report
from hf_mabprune.tasks.base import TASKS

UNITS = {"neuron": "FFN neurons", "head": "attention heads"}
LONG_TABLE = 16  # layers; longer tables are folded away


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Lays cells out as Markdown; columns that are empty throughout are left out."""
    rows = list(rows)
    columns = [column for column in range(len(headings)) if any(row[column] for row in rows)]
    lines = [headings, ["---"] + ["---:"] * (len(headings) - 1), *rows]
    return "\n".join("| " + " | ".join(line[column] for column in columns) + " |" for line in lines)


def results_table(report: Report) -> str:
    """Lays out before | after | every random draw, all metrics of the test split among their columns."""
    rows = [("before", report.before), ("**after**", report.after)]
    rows += [(f"random, seed {draw.seed}", draw.figures) for draw in report.random]
    metrics = [report.main_metric, *(name for name in report.after.metrics if name != report.main_metric)]
    headings = ["", "parameters (M)", "MACs (M)", *metrics, "loss", "KL", "latency (ms)", "weights (MB)"]
    return markdown_table(headings, [[name, *_cells(figures, metrics)] for name, figures in rows])


def kept_table(kept: dict[str, dict[int, tuple[int, int]]]) -> str:
    """Lays out what each layer keeps, folded away where there are many layers.

    Args:
        kept: kind -> layer -> (units kept, units before).
    """
    kinds = [kind for kind in KINDS if kept.get(kind)]
    layers = sorted({layer for kind in kinds for layer in kept[kind]})
    rows = [
        [str(layer), *("{:,} of {:,}".format(*kept[kind][layer]) if layer in kept[kind] else "" for kind in kinds)]
        for layer in layers
    ]
    table = markdown_table(["layer", *(UNITS[kind] for kind in kinds)], rows)
    if len(rows) <= LONG_TABLE:
        return table
    return f"<details>\n<summary>{len(rows)} layers</summary>\n\n{table}\n\n</details>"


def sizes_table(reports: Sequence[Report]) -> str:
    """Lays out the sizes of one search below the dense model, each with a link to the card in its folder.

    Args:
        reports: One a size, of the same search.
    """
    first = reports[0]
    metric = first.main_metric
    headings = ["size", "layout", "parameters (M)", "MACs (M)", metric, "random, mean", "speed-up", "load"]
    dense = ["dense", "", f"{first.before.parameters / 1e6:,.2f}", f"{first.before.macs / 1e6:,.2f}"]
    rows = [[*dense, _metric(first.before, metric), "", "", ""]]
    for size, report in zip((report.in_short() for report in reports), reports, strict=True):
        rows.append(
            [
                f"[{size.name}]({RunFolder(size.name).card.as_posix()})",
                size.layout,
                f"{size.parameters / 1e6:,.2f}",
                f"{size.macs / 1e6:,.2f}",
                _metric(report.after, metric),
                f"{size.random:.4f}",
                f"{size.speedup:.2f}x" if size.speedup else "",
                f'`{TASKS.get(report.task).auto_class}.from_pretrained("{size.name}")`',
            ]
        )
    return markdown_table(headings, rows)


def _cells(figures: ModelFigures, metrics: Sequence[str]) -> list[str]:
    return [
        f"{figures.parameters / 1e6:,.2f}",
        f"{figures.macs / 1e6:,.2f}",
        *(_metric(figures, name) for name in metrics),
        f"{figures.loss:.4f}",
        "" if figures.kl is None else f"{figures.kl:.4f}",
        "" if figures.latency_ms is None else f"{figures.latency_ms:.1f}",
        "" if figures.checkpoint_bytes is None else f"{figures.checkpoint_bytes / 1e6:,.1f}",
    ]


def _metric(figures: ModelFigures, name: str) -> str:
    """Writes the value with its interval, e.g. 0.919 (0.899 to 0.935)."""
    value = figures.metrics[name]
    digits = 4 if abs(value) < 10 else 2
    if name not in figures.intervals:
        return f"{value:.{digits}f}"
    low, high = figures.intervals[name]
    return f"{value:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"
