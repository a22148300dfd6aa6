"""Figures of models as text for a terminal: a table whose lines fit, a model a line."""

from collections.abc import Mapping

from rich import box
from rich.console import Console
from rich.table import Table

from hf_mabprune.errors import printable
from hf_mabprune.evaluation.figures import ModelFigures


def terminal_table(main_metric: str, rows: Mapping[str, ModelFigures]) -> str:
    """Lays out a line a model, that may have no name.

    Args:
        main_metric: Metric to show.
        rows: Name -> model.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("on test")
    headings = ("params", "MACs", f"{printable(main_metric)} (95%)", "loss", "KL", "ms", "MB", "behind (95%)")
    compared = any(figures.behind for figures in rows.values())
    shown = len(headings) if compared else len(headings) - 1
    for heading in headings[:shown]:
        table.add_column(heading, justify="right")
    for name, figures in rows.items():
        table.add_row(name, *_cells(main_metric, figures)[:shown])
    console = Console(width=110, color_system=None, markup=False, emoji=False)
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().splitlines() if line.strip())


def _cells(main_metric: str, figures: ModelFigures) -> list[str]:
    low, high = figures.intervals[main_metric]
    scale = 100 if main_metric != "perplexity" else 1
    behind = [f"{scale * value:+.1f}" for value in figures.behind or ()]
    return [
        _short(figures.parameters),
        _short(figures.macs),
        f"{scale * figures.metrics[main_metric]:.1f} ({scale * low:.1f}-{scale * high:.1f})",
        f"{figures.loss:.3f}",
        "" if figures.kl is None else f"{figures.kl:.4f}",
        "" if figures.latency_ms is None else f"{figures.latency_ms:.1f}",
        "" if figures.checkpoint_bytes is None else f"{figures.checkpoint_bytes / 1e6:.1f}",
        f"{behind[0]} ({behind[1]} to {behind[2]})" if behind else "",
    ]


def _short(count: int) -> str:
    for size, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.1f}{suffix}"
    return str(count)
