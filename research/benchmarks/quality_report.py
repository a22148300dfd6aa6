"""What the rows of the quality benchmark say: tables, ranks, tests, figures. No model is loaded.

A variant is a method with a compensation. Of a method's allocations one counts, everywhere but in the tables of both.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import scikit_posthocs
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from research.benchmarks import allocations, statistics
from research.benchmarks.results import Results
from research.benchmarks.specs import NONE
from research.benchmarks.suite import KEY, Cell, Suite

DPI = 150
ALL = "all"  # compensations, averaged
TITLES = {"retained": "metric retained", "mean_kl": "KL divergence from the dense model"}
MARKERS = "os^vDP*X<>ph8d"


@dataclass(frozen=True)
class QualityReport:
    """Holds what the rows say.

    Attributes:
        text: The report, in Markdown.
        tables: Name -> table as numbers, for CSV.
        figures: Name -> figure, for PNG.
    """

    text: str
    tables: dict[str, pd.DataFrame]
    figures: dict[str, Figure]

    def save(self, folder: str | Path) -> None:
        """Writes report.md, a CSV for each table and a PNG for each figure; the folder is made."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "report.md").write_text(self.text)
        for name, table in self.tables.items():
            table.to_csv(folder / f"{name}.csv")
        for name, figure in self.figures.items():
            figure.savefig(folder / f"{name}.png", dpi=DPI)


def read_report(suite: Suite, cells: Sequence[Cell], out: str | Path) -> QualityReport:
    """Makes the report of the cells that the file holds.

    Args:
        suite: Suite that says what was planned.
        cells: Cells that may count, from `suite.cells`.
        out: Parquet file of the rows.

    Raises:
        ValueError: If the file holds none of them.
    """
    order = pd.DataFrame([cell.key for cell in cells], columns=KEY)
    rows = allocations.complete(Results(out).read(), order)
    if not len(rows):
        raise ValueError(f"{out} holds none of the {len(cells):,} cells; run the benchmark without --report first")
    return make_report(suite, rows, len(cells))


def make_report(suite: Suite, rows: pd.DataFrame, expected: int) -> QualityReport:
    """Makes the report.

    Args:
        suite: Suite that says what was planned.
        rows: One row a cell, in the order of the suite, and of each method and size all allocations.
        expected: Number of cells that the whole comparison has.
    """
    everything = rows.assign(taken=allocations.taken(rows))
    head, rows = _head(suite, rows, expected), everything[everything["taken"]]
    tables, figures = {"rows": everything.set_index("task"), "allocations": allocations.summary(everything)}, {}
    weak = statistics.near_chance(rows, suite.near_chance)
    text = [head, _tasks(rows, weak), _allocations(tables["allocations"], rows)]
    for task, rows_of_task in rows.groupby("task", sort=False):
        text.append(_task_tables(str(task), rows_of_task, everything[everything["task"] == task], bool(weak[task])))
        figures[f"pareto_{task}"] = pareto(rows_of_task, str(task))
    counted = rows[~rows["task"].map(weak)]
    if len(counted):
        tables["area"] = statistics.area_under_curve(counted)
        text.append(_areas(tables["area"]))
        points = counted[counted["target"].isin(suite.operating_points or counted["target"].unique())]
        for measure in TITLES:
            ranks, rank_tables, diagrams = _ranks(points, measure)
            text += [ranks, _planned(suite, points, measure, tables)]
            tables |= rank_tables
            figures |= diagrams
        text.append(_paired_losses(suite, points, tables))
    text.append(_costs(rows))
    return QualityReport("\n\n".join(part for part in text if part) + "\n", tables, figures)


def _head(suite: Suite, rows: pd.DataFrame, expected: int) -> str:
    before = int((rows["plan"] == suite.plan()).sum())
    what = "; ".join(", ".join(rows[column].unique()) for column in ("family", "compensation"))
    note = f"all {len(rows):,} cells" if before == len(rows) else f"{before:,} of {len(rows):,} cells only"
    return (
        f"# Quality at equal size: {what}\n\n{len(rows):,} of {expected:,} cells. Planned comparisons, margin, "
        f"operating points and the distance from chance stood in the suite file before {note}.\nMetric retained is "
        "(metric - chance) / (dense - chance), of perplexities by their logs, from 0 up; ± is the standard "
        "deviation over seeds.\nEvery method that ranks arms is measured in two allocations of one size: own, its "
        "ranking over all layers, and equal, its order within each layer, with the same number of units in every "
        "layer (to within one block or head). The one with the lower KL divergence on held-out data counts: on the "
        "validation split, by which nothing was chosen or refitted; the same examples for all methods."
    )


def _tasks(rows: pd.DataFrame, weak: pd.Series) -> str:
    table = rows.groupby("task", sort=False)[["model", "metric", "dense", "chance", "dense_loss"]].first()
    table["near chance"] = np.where(weak.loc[table.index], "yes: left out of ranks and tests", "")
    return "## Data sets\n\n" + table.to_markdown(floatfmt=".4g")


def _allocations(summary: pd.DataFrame, rows: pd.DataFrame) -> str:
    names = {
        "retained_other": "retained by the other", "mean_kl": "test KL", "mean_kl_other": "test KL of the other",
        "other_better": "other has the lower test KL",
    }  # fmt: skip
    written = summary.map(lambda value: "" if np.isnan(value) else f"{value:.4g}")
    shown = _by_variant(written, rows).rename(columns=names)
    return (
        "## Which allocation counted\n\nCells in which own or equal widths had the lower held-out KL divergence; "
        "where there are both, means on the test split of the ones that counted and of the others.\n\n"
        + shown.to_markdown(disable_numparse=True)
    )


def _task_tables(task: str, rows: pd.DataFrame, both: pd.DataFrame, weak: bool) -> str:
    metric, whole = rows["metric"].iloc[0], rows["dense"].iloc[0]
    parts = [f"## {task}: {metric}, dense {whole:.4g}{' (near chance)' if weak else ''}"]
    for title, column in ((str(metric), "value"), ("KL divergence, nats", "mean_kl")):
        cells = rows.groupby(["method", "compensation", "target"], sort=False)[column]
        shown = cells.agg(lambda values: _mean_and_spread(values)).unstack()[list(rows["target"].unique())]
        parts.append(f"{title}:\n\n{_by_variant(shown, rows).to_markdown(disable_numparse=True)}")
        if len(names := both["allocation"].unique()) > 1:
            shown = allocations.both_of(both, column).unstack()[list(rows["target"].unique())]
            title = f"{title}, {' / '.join(names)}, and the one that counts"
            parts.append(f"{title}:\n\n{_by_variant(shown, rows).to_markdown(disable_numparse=True)}")
    return "\n\n".join(parts)


def _mean_and_spread(values: pd.Series) -> str:
    spread = f" ± {values.std():.2g}" if len(values) > 1 else ""
    return f"{values.mean():.4g}{spread}"


def _by_variant(table: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """Rows (method, compensation) -> variants, in the order of the suite."""
    order = list(rows[["method", "compensation"]].drop_duplicates().itertuples(index=False, name=None))
    ordered = table.loc[sorted(order, key=lambda pair: [one for _, one in order].index(pair[1]))]
    names = [method if refit == NONE else f"{method} + {refit}" for method, refit in ordered.index]
    return ordered.set_axis(pd.Index(names, name="method"), axis=0).fillna("")


def _areas(areas: pd.DataFrame) -> str:
    shown = areas.groupby(["method", "compensation", "family"], sort=False)["area"].mean().unstack(sort=False)
    return (
        "## Area under the curve of metric retained over sparsity\n\nMean over data sets; 1 is all.\n\n"
        + _by_variant(shown, areas).to_markdown(floatfmt=".3f")
    )


def _ranks(rows: pd.DataFrame, measure: str) -> tuple[str, dict[str, pd.DataFrame], dict[str, Figure]]:
    """Text, tables and diagrams of one measure: for each compensation, and for all of them averaged."""
    groups = {str(name): group for name, group in rows.groupby("compensation", sort=False)}
    groups |= {ALL: rows} if len(groups) > 1 else {}
    tables, figures, means, tests = {}, {}, {}, []
    for name, group in groups.items():
        scores = statistics.score_table(group, measure)
        if scores.shape[1] < 2:
            continue
        ranks = statistics.rank_table(scores, statistics.GREATER_IS_BETTER[measure])
        means[name] = ranks.mean()
        label = f"{measure}_{_file_name(name)}"
        tables[f"scores_{label}"] = scores
        tables[f"ranks_{label}"] = ranks
        try:
            test = statistics.friedman(scores)
        except ValueError as reason:
            tests.append(f"- {name}: no test: {reason}")
            continue
        pairs = tables[f"nemenyi_{label}"] = statistics.nemenyi(scores)
        tests.append(
            f"- {name}: Friedman (Iman-Davenport) F = {test.f:.3g}, p = {test.p:.3g}; {test.data_sets} data sets, "
            f"{test.methods} methods; Nemenyi critical difference {test.difference:.2f} at 5%"
        )
        figures[f"ranks_{label}"] = critical_difference(ranks.mean(), pairs, f"{TITLES[measure]}: {name}")
    if not means:
        return "", {}, {}
    shown = pd.DataFrame(means).sort_values(ALL if ALL in means else next(iter(means)))
    dropped = len(rows) - sum(len(statistics.shared_points(group)) for name, group in groups.items() if name != ALL)
    note = f" {dropped:,} cells that not all methods have are left out." if dropped else ""
    text = f"## Mean ranks by {TITLES[measure]}\n\nOver data sets, seeds and operating points averaged first.{note}"
    return text + "\n\n" + shown.to_markdown(floatfmt=".2f") + "\n\n" + "\n".join(tests), tables, figures


def _planned(suite: Suite, rows: pd.DataFrame, measure: str, tables: dict[str, pd.DataFrame]) -> str:
    planned = [pair for pair in suite.planned if {pair.method, pair.against} <= set(rows["method"])]
    if not planned:
        return ""
    compared = tables[f"planned_{measure}"] = statistics.compare_planned(rows, planned, measure, suite.margin)
    skipped = len(suite.planned) - len(planned)
    note = f" {skipped} planned pairs have no rows yet." if skipped else ""
    return (
        f"### Planned comparisons by {TITLES[measure]}\n\nWilcoxon over data sets, Holm over the claims of better; "
        f"won, tied and lost cells (data set x target x compensation, seeds averaged); worse: lost by more than the "
        f"margin of {suite.margin:g} retained.{note}\n\n" + compared.to_markdown(index=False, floatfmt=".3g")
    )


def _paired_losses(suite: Suite, rows: pd.DataFrame, tables: dict[str, pd.DataFrame]) -> str:
    """Text and table of the planned pairs' losses; nothing where rows are without those of every example."""
    if "losses" not in rows or rows["losses"].isna().any():
        return ""
    compared = tables["paired_losses"] = statistics.compare_losses(rows, suite.planned)
    if compared.empty:
        return ""
    return (
        "### Planned comparisons by loss, in pairs\n\nMean difference of the losses of the same test examples, in "
        "nats, and the 95% interval of a bootstrap over data sets, draws and examples; below 0 the method is "
        "better.\n\n" + compared.to_markdown(index=False, floatfmt=".4f")
    )


def _costs(rows: pd.DataFrame) -> str:
    names = ["search_seconds", "pulls", "forward_tokens", "backward_tokens"]
    choices = rows[rows["compensation"] == rows["compensation"].iloc[0]].groupby("method", sort=False)[names].mean()
    refits = rows[rows["compensation"] != NONE].groupby("compensation", sort=False)
    text = "## Cost of a choice\n\nMeans over cells; what several sizes or methods share counts for each in full.\n\n"
    text += choices.to_markdown(floatfmt=",.0f")
    if len(refits):
        costs = ["compensation_seconds", "compensation_tokens", "sites_refitted", "sites_cut"]
        text += "\n\n" + refits[costs].mean().to_markdown(floatfmt=",.1f")
    return text


def critical_difference(ranks: pd.Series, pairs: pd.DataFrame, title: str) -> Figure:
    """Draws methods on a line by mean rank; bars join those that do not differ for sure.

    Args:
        ranks: Mean rank of each method, [k].
        pairs: Nemenyi's p-values, [k, k].
        title: What the ranks are of.
    """
    figure = Figure(figsize=(8, 1.6 + 0.22 * len(ranks)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    scikit_posthocs.critical_difference_diagram(ranks, pairs, ax=axes)
    axes.set_title(f"Mean rank, {title}", fontsize=10)
    return figure


def pareto(rows: pd.DataFrame, task: str) -> Figure:
    """Draws the metric over parameters kept: a panel a compensation, a line a method, a point a target.

    Args:
        rows: Rows of the data set.
        task: Name of the data set.
    """
    panels = list(rows["compensation"].unique())
    figure = Figure(figsize=(1 + 4.2 * len(panels), 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    methods = list(rows["method"].unique())
    for axes, compensation in zip(grid, panels, strict=True):
        shown = rows[rows["compensation"] == compensation]
        for number, method in enumerate(methods):
            points = shown[shown["method"] == method].groupby("target")[["parameters", "value"]].mean()
            points = points.sort_values("parameters")
            axes.plot(
                points["parameters"] / 1e6, points["value"], label=method, color=f"C{number % 10}", lw=0.8, ms=5,
                marker=MARKERS[number % len(MARKERS)],
            )  # fmt: skip
        axes.axhline(rows["dense"].iloc[0], color="#767676", ls="--", lw=0.8)
        axes.axhline(rows["chance"].iloc[0], color="#767676", ls=":", lw=0.8)
        axes.set(xlabel="parameters kept, millions", title=compensation)
    grid[0].set_ylabel(f"{task}: {rows['metric'].iloc[0]}")
    if rows["metric"].iloc[0] == "perplexity":
        grid[0].set_yscale("log")
    grid[-1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _file_name(label: str) -> str:
    return "".join(letter if letter.isalnum() or letter == "_" else "-" for letter in label)
