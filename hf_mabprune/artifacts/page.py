"""The page of a run: all of its figures, what got worse for whom, and the examples that changed, in one HTML file.

The file asks nothing of anywhere: styles and figures are in it, and there is no script. Of local paths it shows the
last parts. Texts of examples come from whoever calls, since the data may be private.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from hf_mabprune.arms import KINDS
from hf_mabprune.artifacts import page_figures
from hf_mabprune.artifacts.page_examples import Told, changed_examples, compared_groups
from hf_mabprune.artifacts.redaction import hub_model, last_part, public_config, without_paths
from hf_mabprune.artifacts.tables import (
    UNITS,
    difference_in_words,
    kept_by_layer,
    layer_labels,
    metric_in_words,
    number_in_words,
    signed_in_words,
)
from hf_mabprune.errors import one_line
from hf_mabprune.evaluation.figures import ModelFigures
from hf_mabprune.evaluation.report import Report

TEMPLATE = Path(__file__).with_name("page_template.html")
MARK = '<meta name="generator" content="hf_mabprune report">'  # near the beginning of every page
MANY_LAYERS = 16  # rows of the table of widths that are not folded away


def page_of(sizes: Sequence[Told], missing: str = "") -> str:
    """Makes the page of a run.

    Args:
        sizes: One or several sizes of the same search, from the largest model to the smallest.
        missing: Why the test data were not read, where they were not.

    Returns:
        HTML, whole.
    """
    first = sizes[0].report
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    name = one_line(hub_model(first.model) or last_part(first.model))
    environment.filters["number"] = number_in_words
    content = {
        "mark": MARK,
        "name": name,
        "several": len(sizes) > 1,
        "sizes": [_view(size) for size in sizes],
        "pareto": page_figures.pareto(sizes[-1].report),
        "missing": one_line(without_paths(missing)),
        "shows_texts": any(size.data is not None and size.most for size in sizes),
        "facts": _facts(first),
        "config": public_config(sizes[-1].config_yaml).strip(),
    }
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(content)


def _view(size: Told) -> dict[str, Any]:
    """Gives what the template shows of a size, in words."""
    report = size.report
    return {
        "id": report.size_name,
        "headline": headline(report),
        "tiles": _tiles(report),
        "columns": _columns(report),
        "rows": _figures(report),
        "verdict": _sentence(report.against_random()),
        "certificate": _sentence(report.certificate()),
        "promise": _sentence(str(report.promise)) if report.promise else "",
        "reached": _sentence(str(report.reached)) if report.reached else "",
        "layout": f"{report.layout}{f' ({without_paths(report.layout_reason)})' if report.layout_reason else ''}",
        "warnings": [one_line(without_paths(warning)) for warning in report.warnings],
        "kinds": [UNITS[kind] for kind in _kinds(report)],
        "widths": _widths(report),
        "folded": len(_widths(report)) > MANY_LAYERS,
        "effects": page_figures.effects(size.arms, report.search.reward),
        "course": page_figures.course(report),
        "unmeasured": int((size.arms["pulls"] == 0).sum()),
        "arms": len(size.arms),
        "groups": compared_groups(size),
        "changed": changed_examples(size),
    }


def headline(report: Report) -> str:
    """Says what was cut, what it cost and how fast the result is, in a sentence."""
    before, after, name = report.before, report.after, report.main_metric
    said = f"{report.removed_fraction():.0%} of the FFN and attention parameters are gone; {one_line(name)} goes from "
    said += f"{number_in_words(before.metrics[name])} to {number_in_words(after.metrics[name])}"
    if before.behind:
        change, interval = difference_in_words(before.behind, before.metrics[name]).rstrip(")").split(" (")
        said += f" ({change}, 95% interval {interval})"
    if speedup := report.speedup:
        said += f", and a forward pass is {speedup:.2f} times as fast"
    return f"{said}."


def _tiles(report: Report) -> list[tuple[str, str, str]]:
    """Gives the main figures: a heading, the figure, and what it is beside."""
    before, after, name = report.before, report.after, report.main_metric
    tiles = [
        (
            "parameters",
            f"{after.parameters / before.parameters:.0%}",
            f"{after.parameters / 1e6:,.2f}M of {before.parameters / 1e6:,.2f}M",
        ),
        (f"{one_line(name)}", number_in_words(after.metrics[name]), f"dense {number_in_words(before.metrics[name])}"),
    ]
    if report.speedup and after.latency_ms and before.latency_ms:
        beside = f"{after.latency_ms:.1f} ms, dense {before.latency_ms:.1f} ms"
        tiles.append((f"speed on {report.device}", f"{report.speedup:.2f}x", beside))
    if after.changed is not None:
        bound = f"at most {after.changed_bound:.1%} with 95% confidence" if after.changed_bound is not None else ""
        tiles.append(("answers changed", f"{after.changed:.1%}", bound))
    elif after.kl is not None:
        tiles.append(("KL from the dense model", _number(after.kl), "nats, mean over test examples"))
    return tiles


def _columns(report: Report) -> list[str]:
    """Names the models of the table: dense, pruned, what criteria leave alone, and the mean of the random draws."""
    draws = len(report.random)
    random = [f"random, mean of {draws}" if draws > 1 else "random"] if draws else []
    return ["dense", "pruned", *(f"{one_line(name)} alone" for name in report.alone), *random]


def _figures(report: Report) -> list[tuple[str, list[str]]]:
    """Gives the table of figures: a measure a row, a model a column; of random draws the mean."""
    models, draws = [report.before, report.after, *report.alone.values()], [draw.figures for draw in report.random]

    def row(name: str, number: Callable[[ModelFigures], float | None], written: Callable[[float], str]) -> None:
        cells = ["" if (value := number(model)) is None else written(value) for model in models]
        rows.append((name, cells + mean([number(draw) for draw in draws], written)))

    def mean(values: Sequence[float | None], written: Callable[[float], str]) -> list[str]:
        known = [value for value in values if value is not None]
        return [written(float(np.mean(known))) if known else ""] if draws else []

    rows: list[tuple[str, list[str]]] = []
    row("parameters (M)", lambda model: model.parameters / 1e6, "{:,.2f}".format)
    row("MACs (M)", lambda model: model.macs / 1e6, "{:,.2f}".format)
    for name in [report.main_metric, *(name for name in report.after.metrics if name != report.main_metric)]:
        drawn = mean([draw.metrics[name] for draw in draws], number_in_words)
        rows.append((one_line(name), [metric_in_words(model, name) for model in models] + drawn))
    row("loss", lambda model: model.loss, number_in_words)
    row("KL from the dense model", lambda model: model.kl, number_in_words)
    row("latency (ms)", lambda model: model.latency_ms, "{:,.1f}".format)
    row("weights (MB)", lambda model: model.checkpoint_bytes and model.checkpoint_bytes / 1e6, "{:,.1f}".format)
    main = report.before.metrics[report.main_metric]
    behind = [difference_in_words(model.behind, main) if model.behind else "" for model in models]
    drawn = mean([draw.behind and draw.behind[0] for draw in draws], lambda value: signed_in_words(value, main))
    rows.append((f"{one_line(report.main_metric)}, pruned minus it", behind + drawn))
    return [(name, cells) for name, cells in rows if any(cells)]


def _kinds(report: Report) -> list[str]:
    return [kind for kind in KINDS if report.kept.get(kind)]


def _widths(report: Report) -> list[tuple[str, list[tuple[int, int] | None]]]:
    """Gives the table of what layers keep: label -> (kept, before) of each kind of units."""
    kinds = _kinds(report)
    labels = layer_labels([site for kind in kinds for site in report.kept[kind]])
    sums = [kept_by_layer(report.kept[kind], labels) for kind in kinds]
    return [(one_line(label), [each.get(label) for each in sums]) for label in dict.fromkeys(labels.values())]


def _facts(report: Report) -> list[tuple[str, str]]:
    """Gives the rows of "how it was made"."""
    search = report.search
    chosen = search.policy.get("name") if search.policy else search.criterion
    return [
        ("architecture, task", f"{report.architecture}, {report.task}"),
        ("chosen by", one_line(f"policy {chosen}" if search.policy else f"criterion {chosen}")),
        ("search", f"{search.arms:,} arms, {search.pulls:,} pulls, {search.seconds:,.0f} s on {report.device}"),
        ("stopped because", one_line(without_paths(search.stopped_because))),
        ("refit", one_line(str((report.compensation or {}).get("name", "none")))),
        ("training after", "yes" if report.recovery else "none"),
        ("seed", str(report.seed)),
        ("versions", ", ".join(f"{package} {version}" for package, version in report.versions.items())),
    ]


def _number(value: float) -> str:
    return f"{value:.4g}"


def _sentence(text: str) -> str:
    text = one_line(without_paths(text))
    return f"{text[:1].upper()}{text[1:]}." if text else ""
