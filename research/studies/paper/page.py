"""The page of the study, made from its cells: claims, designs, ranks, planned pairs, mistakes, costs and choices."""

import gc
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from hf_mabprune.runtime.files import write_atomically
from research.studies.paper import plots
from research.studies.paper.claims import all_claims, p_value, planned, points, sizes
from research.studies.paper.findings import findings, straw_man
from research.studies.paper.methods import Protocol
from research.studies.paper.mistakes import mistakes
from research.studies.paper.rows import DEEP, DENSE, SUITES, TABLES
from research.studies.paper.statistics import (
    SIX,
    SIX_KL,
    Design,
    View,
    label,
    left_out,
    policy_view,
    score_table,
    summary,
)
from research.studies.paper.words import (
    CHOICES,
    COSTS,
    DESIGNS,
    HEAD,
    HOW_TO,
    MISTAKES,
    OF_DEEP,
    OF_TABLES,
    RANKS,
    SIX_POLICIES,
    VERDICTS,
)
from research.studies.store import PROTOCOL, TIME

FIGURES = "figures"
CAPTIONS = {
    "ranks": "Mean ranks; bars join what Nemenyi's test does not separate",
    "fractions": "Score less that of the dense network, by fraction removed",
    "cost": "Score less that of the dense network, by what the search sent forward",
}


def write_page(cells: pd.DataFrame, page: Path, protocols: Mapping[str, Protocol]) -> str:
    """Writes the page, and its figures into a folder beside it.

    Args:
        cells: Rows as `rows.read_results` gives them.
        page: File of the page.
        protocols: How cells were made, of tables and of deep settings.

    Returns:
        The claims, for a terminal.
    """
    page.parent.mkdir(parents=True, exist_ok=True)
    gc.freeze()  # statsmodels collects garbage at every correction, and what was imported is none
    names = plots.save(cells, page.parent / FIGURES)
    write_atomically(page, page_text(cells, names, protocols).encode())
    lines = [f"{claim.suite}: {claim.words}: {claim.verdict}" for claim in all_claims(cells)]
    gc.unfreeze()
    return "\n".join([*lines, f"written to {page}", ""])


def page_text(cells: pd.DataFrame, figures: Sequence[str], protocols: Mapping[str, Protocol]) -> str:
    """Makes the text of the page.

    Args:
        cells: All cells.
        figures: Names of the figures that there are.
        protocols: How cells were made, of tables and of deep settings.
    """
    suites = [suite for suite in SUITES if suite in set(cells["suite"])]
    parts = [HEAD, _counts(cells, protocols), _claims(cells), findings(cells), _designs(cells)]
    parts += [_suite(cells, suite, figures) for suite in suites]
    parts += [
        _sensitivity(cells),
        _mistakes(cells),
        _costs(cells),
        straw_man(cells),
        _choices(protocols),
        HOW_TO,
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def protocols_of(settings: Mapping[Any, Any]) -> dict[str, Protocol]:
    """Gives how cells were made, by part of the study.

    Args:
        settings: Those of the parts, as results hold them.
    """
    return {str(part): Protocol.of(stored[PROTOCOL]) for part, stored in settings.items()}


def _choices(protocols: Mapping[str, Protocol]) -> str:
    """What was decided, of the parts of the study that there are."""
    parts = [CHOICES]
    for part, words in ((TABLES, OF_TABLES), (DEEP, OF_DEEP)):
        if part in protocols:
            fractions = ", ".join(f"{fraction:.0%}" for fraction in protocols[part].fractions)
            parts.append(words.format(**{**asdict(protocols[part]), "fractions": fractions}))
    return "\n\n".join([*parts, VERDICTS])


def markdown(table: pd.DataFrame) -> str:
    """Writes a table, a line a row, without padding."""
    columns = list(map(str, table))
    rows = [columns, ["---"] * len(columns), *([f"{value}" for value in row] for row in table.to_numpy())]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _counts(cells: pd.DataFrame, protocols: Mapping[str, Protocol]) -> str:
    lines = []
    for suite, rows in cells.groupby("suite", sort=False):
        methods = rows[["method", "reward"]].drop_duplicates().shape[0]
        all_draws = protocols[DEEP if suite == DEEP else TABLES].splits
        lines.append(
            f"{suite} {rows['setting'].nunique()} settings, {_draws(rows)} of {all_draws} draws, {methods} methods "
            f"with their rewards, {len(rows):,} cells"
        )
    gone = left_out(cells)
    near = f" Near chance, shown and not ranked: {', '.join(gone)}." if gone else ""
    return f"In these cells: {'; '.join(lines)}.{near}"


def _draws(rows: pd.DataFrame) -> str:
    """Says how many draws settings have: one number where all have the same."""
    counts = rows.groupby("setting")["draw"].nunique()
    return " to ".join(map(str, dict.fromkeys((counts.min(), counts.max()))))


def _networks(cells: pd.DataFrame) -> str:
    """What the networks of the deep settings reach, and of how many draws there are cells."""
    dense = cells[(cells["suite"] == DEEP) & (cells["method"] == DENSE) & ~cells["tuned"]]
    rows = [
        (
            setting,
            own["metric"].iloc[0],
            f"{own['dense_score'].mean():.3f}",
            "no" if setting in left_out(cells) else "yes",
            own["draw"].nunique(),
        )
        for setting, own in dense.groupby("setting")
    ]
    return markdown(pd.DataFrame(rows, columns=["network", "metric", "on test data", "ranked", "draws"]))


def _claims(cells: pd.DataFrame) -> str:
    rows = [(f'"{claim.words}"', claim.suite, f"**{claim.verdict}**", claim.why) for claim in all_claims(cells)]
    table = pd.DataFrame(rows, columns=["the abstract says", "suite", "here", "numbers"])
    return (
        f"## The claims\n\nCut networks as they are, all fractions averaged, the paper's reward.\n\n{markdown(table)}"
    )


def _designs(cells: pd.DataFrame) -> str:
    table = sizes(cells)
    for column in ("critical", "detectable"):
        table[column] = table[column].map("{:.2f}".format)
    shown = table.set_axis(
        ["suite", "compared", "methods", "settings", "critical difference", "detectable in 80% of studies", "largest"],
        axis=1,
    )
    return f"{DESIGNS}\n\n{markdown(shown)}"


def _suite(cells: pd.DataFrame, suite: str, figures: Sequence[str]) -> str:
    """Ranks, planned pairs and figures of one suite."""
    view, parts = View(suite), [f"## {suite.capitalize()}"]
    if suite == DEEP:
        parts.append(_networks(cells))
    design = policy_view(cells, view)
    if design.possible:
        found, pairs = design.separations(SIX)
        test = design.test
        parts.append(
            SIX_POLICIES.format(f=test.f, p=p_value(test.p), difference=test.difference, pairs=pairs, found=found)
        )
    with_kl = Design(score_table(cells, view, (*SIX_KL, DENSE)))
    if with_kl.possible and set(SIX_KL) <= set(with_kl.scores):
        ranks = ", ".join(f"{name} {rank:.2f}" for name, rank in with_kl.ranks.items())
        parts.append(f"With KL in the place of the paper's reward: p = {p_value(with_kl.test.p)}; mean ranks {ranks}.")
    everything = score_table(cells, view)
    if min(everything.shape) >= 2:
        table, tuned = summary(everything), score_table(cells, View(suite, tuned=True)).mean()
        rows = [
            (
                name,
                f"{line['rank']:.2f}",
                f"{line['median']:.3f} ({line['mad']:.3f})",
                f"{everything[name].mean():.3f}",
                points(line) if "difference" in line else "",
                f"{tuned[name]:.3f}" if name in tuned else "",
            )
            for name, line in zip(map(str, table.index), table.to_dict("records"), strict=True)
        ]
        columns = ["method", "mean rank", "median (MAD)", "mean", "less dense (95%)", "mean, trained further"]
        parts.append(f"{RANKS}\n\n{markdown(pd.DataFrame(rows, columns=columns))}")
    parts.append(_planned(cells, view))
    shown = {kind: f"paper-{kind}-{suite}" for kind in CAPTIONS}
    parts += [f"![{CAPTIONS[kind]}]({FIGURES}/{name}.png)" for kind, name in shown.items() if name in figures]
    return "\n\n".join(part for part in parts if part)


def _planned(cells: pd.DataFrame, view: View) -> str:
    pairs = planned(cells, view)
    if not len(pairs):
        return ""
    rows = [
        (
            f"{line['method']} less {line['against']}",
            points(line),
            f"{line['detectable']:.3f}",
            p_value(line["p"]),
            p_value(line["holm"]) if line["decidable"] else "not decidable",
            f"{line['won']} / {line['lost']}",
        )
        for _, line in pairs.iterrows()
    ]
    columns = ["pair, named before the runs", "difference (95%)", "detectable", "Wilcoxon p", "Holm", "won / lost"]
    return markdown(pd.DataFrame(rows, columns=columns))


def _sensitivity(cells: pd.DataFrame) -> str:
    """The verdicts under other views: each fraction alone, and with training afterwards."""
    fractions = sorted(cells.loc[cells["fraction"] > 0, "fraction"].round(6).unique())
    views: list[tuple[str, bool, tuple[float, ...]]] = [("all, trained further", True, ())]
    views += [
        (f"{fraction:.0%}{', trained further' if tuned else ''}", tuned, (fraction,))
        for fraction in fractions
        for tuned in (False, True)
    ]
    main = [claim for claim in all_claims(cells) if claim.words != "computationally practical"]
    table = pd.DataFrame(
        {
            "claim": [f"{claim.suite}: {claim.words[:60]}" for claim in main],
            "all": [claim.verdict for claim in main],
            **{
                name: [claim.verdict for claim in all_claims(cells, tuned, chosen)[: len(main)]]
                for name, tuned, chosen in views
            },
        }
    )
    return "## The same claims at each fraction\n\n" + markdown(table)


def _mistakes(cells: pd.DataFrame) -> str:
    table = mistakes(cells)
    if not len(table):
        return ""
    draws = cells.loc[cells["variant"] != "", "draw"].nunique()
    return f"{MISTAKES.format(draws=draws)}\n\n{markdown(table)}"


def _costs(cells: pd.DataFrame) -> str:
    """Pulls, rows or tokens sent forward, and seconds, of a search: a line a method, a column a suite."""
    plain = cells[(cells["variant"] == "") & ~cells["tuned"]]
    once = plain.drop_duplicates(["setting", "draw", "method", "reward"])
    once = once[(once["fraction"] > 0) | (once["method"] == DENSE)]
    columns: dict[str, dict[str, str]] = {}
    for suite, rows in once.groupby("suite", sort=False):
        columns[str(suite)] = {}
        for (method, reward), group in rows.groupby(["method", "reward"], sort=False):
            name = "training of the dense network" if method == DENSE else label(str(method), str(reward))
            pulls, tokens, seconds = (group[column].mean() for column in ("pulls", "tokens", TIME))
            columns[str(suite)][name] = f"{pulls:,.0f}; {tokens:,.0f}; {seconds:.2f}"
    table = pd.DataFrame(columns).fillna("").rename_axis("search").reset_index()
    each_once = cells.drop_duplicates(["setting", "draw", "method", "reward", "variant"])
    units = each_once.groupby(["suite", "setting", "draw"], sort=False)[TIME].sum().groupby("suite", sort=False)
    told = "; ".join(f"{suite} {own.median():,.0f} ({own.max():,.0f})" for suite, own in units)
    return f"{COSTS.format(seconds=told)}\n\n{markdown(table)}"
