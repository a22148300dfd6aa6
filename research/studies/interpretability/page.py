"""The page of the study, made from its cells."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import torch

from hf_mabprune.runtime.files import write_atomically
from research.studies.interpretability import plots
from research.studies.interpretability.claims import RETRAINED, all_tests, final_verdicts, relations
from research.studies.interpretability.estimates import correlation, over_seeds
from research.studies.interpretability.protocol import KINDS, NETWORKS, QUICK, SCHEDULES, STUDIED, Protocol
from research.studies.interpretability.rows import CONTROLS, UNPRUNED, control, pruned, with_base
from research.studies.interpretability.words import (
    CHOICES,
    CONTROL_WORDS,
    FINDINGS,
    HEAD,
    HOW_TO,
    LEFT_OUT,
    QUICK_RUN,
    RELATIONS,
    SCALE,
    SIZES,
    TABLES,
)
from research.studies.paper.page import FIGURES, markdown

TITLES = {
    "googlenet": "GoogLeNet",
    "vit": "A small vision transformer",
    "text": "A text classifier",
    "image": "An image classifier by name",
}


def write_page(cells: pd.DataFrame, page: Path, protocol: Protocol, units: Sequence[str] = ()) -> str:
    """Writes the page, and its figures into a folder beside it.

    Args:
        cells: Rows as `rows.read_results` gives them.
        page: File of the page.
        protocol: How cells were made.
        units: Sections on single units, as `unit_page` makes them.

    Returns:
        The verdicts, for a terminal; or that there is no page, where no base network was measured unpruned.
    """
    cells = with_base(cells)
    if not len(cells):
        return "no page: the controls of no network are there yet, which a run without --only kind makes\n"
    page.parent.mkdir(parents=True, exist_ok=True)
    figures = plots.save(cells, page.parent / FIGURES)
    write_atomically(page, page_text(cells, protocol, figures, units).encode())
    found = final_verdicts(all_tests(cells, _networks(cells)[0]))
    return "\n".join([*(f"{words}: {verdict}" for words, verdict in found.items()), f"written to {page}", ""])


def page_text(cells: pd.DataFrame, protocol: Protocol, figures: Sequence[str], units: Sequence[str] = ()) -> str:
    """Makes the text of the page; arguments as those of `write_page`, and the names of the figures that there are."""
    first, *others = networks = _networks(cells)
    sizes = SIZES.format(
        **{
            **asdict(protocol),
            "rates": " and ".join(f"{rate:g}" for rate in protocol.rates),
            "seeds": cells.loc[cells["network"] == first, "seed"].nunique(),
        },
        kinds=pruned(cells, first)["kind"].nunique(),
        longest=protocol.longest,
        alpha=protocol.trials.alpha,
        **{"same_class": cells.loc[cells["network"] == first, "same_class"].iloc[0]},
    ).replace(protocol.similarity, str(cells.loc[cells["network"] == first, "similarity"].iloc[0]))
    parts = [
        HEAD,
        *([QUICK_RUN] if protocol == QUICK else []),
        sizes,
        _missing(cells, protocol),
        _findings(cells, first),
    ]
    parts += [
        TABLES,
        _network(cells, first, figures),
        _relations(cells, first),
        f"{LEFT_OUT}\n\n{_left(cells, first)}",
    ]
    parts += [f"## {TITLES.get(name, name)}\n\n{_other(cells, name, figures)}" for name in others]
    parts += [f"{CONTROL_WORDS}\n\n{_controls(cells, networks)}", _scale(protocol), *units, CHOICES, HOW_TO]
    return "\n\n".join(part for part in parts if part) + "\n"


def _networks(cells: pd.DataFrame) -> list[str]:
    """Gives the networks that there are, GoogLeNet first."""
    there = list(dict.fromkeys(cells["network"]))
    return sorted(there, key=lambda name: NETWORKS.index(name) if name in NETWORKS else -1)


def _missing(cells: pd.DataFrame, protocol: Protocol) -> str:
    """Says what of the protocol has not been run; nothing where all has."""
    left = []
    for name in STUDIED:
        for seed in range(protocol.seeds_of(name)):
            rows = cells[(cells["network"] == name) & (cells["seed"] == seed)]
            there = set(zip(rows["kind"], rows["rate"], strict=True))
            wanted = [(kind, rate) for kind in protocol.kinds_of(name) for rate in protocol.rates]
            missing = [f"{kind} {rate:g}" for kind, rate in wanted if (kind, rate) not in there]
            if missing:
                left.append(f"{TITLES[name]}, seed {seed}" + (f" without {', '.join(missing)}" if len(rows) else ""))
    return f"**Not run yet**: {'; '.join(left)}." if left else ""


def _findings(cells: pd.DataFrame, network: str) -> str:
    tests = all_tests(cells, network)
    verdicts = final_verdicts(tests)
    short = pd.DataFrame(
        [(f'"{words}"', f"**{verdict}**") for words, verdict in verdicts.items()], columns=["the paper found", "here"]
    )
    told = [(test.finding, test.reading, str(test.estimate), test.verdict) for test in tests]
    long = pd.DataFrame(told, columns=["finding", "read as", "number", "verdict"])
    long["finding"] = long["finding"].mask(long["finding"].duplicated(), "")
    head = FINDINGS.format(network=TITLES.get(network, network))
    differing = "Where readings of a finding differ, all of their verdicts stand."
    return f"{head}\n{markdown(short)}\n\n{differing}\n\n{markdown(long)}"


def _network(cells: pd.DataFrame, network: str, figures: Sequence[str]) -> str:
    """The table of one network, and its figures."""
    rows, lines = pruned(cells, network), []
    for kind in (kind for kind in KINDS if kind in set(rows["kind"])):
        for schedule in (name for name in SCHEDULES if name in set(rows["schedule"])):
            for rate, part in rows[(rows["kind"] == kind) & (rows["schedule"] == schedule)].groupby("rate"):
                lines.append((kind, schedule, f"{rate:g}", f"{part['epochs'].iloc[0]:g}", *_figures(part)))
    for name in CONTROLS[:3]:
        part = control(cells, network, name)
        if len(part):
            lines.append((name, "", "0", f"{part['epochs'].iloc[0]:g}", *_figures(part)))
    columns = ["kind", "schedule", "rate", "epochs", "accuracy", "MIS", "tasks solved", "cut", "zeros"]
    return "\n\n".join([markdown(pd.DataFrame(lines, columns=columns)), *_pictures(network, figures)])


def _figures(part: pd.DataFrame) -> list[str]:
    return [*_means(part, "accuracy", "mis", "solved"), f"{part['cut'].mean():.1%}", f"{part['zeros'].mean():.1%}"]


def _means(part: pd.DataFrame, *names: str) -> list[str]:
    """Writes means over seeds; of MIS, whose scale is narrow, a digit more."""
    return [over_seeds(list(part[name])).plus_minus(4 if name == "mis" else 3) for name in names]


def _pictures(network: str, figures: Sequence[str]) -> list[str]:
    captions = {
        "rates": "Accuracy and MIS by rate; bars span the seeds, dashes the unpruned network",
        "accuracy": "MIS against accuracy, a point a cell",
    }
    wanted = {f"interpretability-{kind}-{network}": words for kind, words in captions.items()}
    return [f"![{words}]({FIGURES}/{name}.png)" for name, words in wanted.items() if name in figures]


def _relations(cells: pd.DataFrame, network: str) -> str:
    by_score = [dict(relations(cells, network, score)) for score in ("mis", "solved")]
    rows = [
        (words, found.count, str(found), found.p_value, str(by_score[1][words]))
        for words, found in by_score[0].items()
    ]
    table = pd.DataFrame(rows, columns=["over", "points", "r of rate and MIS", "p", "r of rate and tasks solved"])
    retrained = pruned(cells, network, RETRAINED)
    both = correlation(list(retrained["accuracy"]), list(retrained["mis"]))
    return f"{RELATIONS}\n\n{markdown(table)}\n\nAccuracy and MIS of the same cells: r {both} (p {both.p_value})."


def _left(cells: pd.DataFrame, network: str) -> str:
    """What leaving units out does, retrained schedules together."""
    unpruned = control(cells, network, UNPRUNED)["mis"].mean()
    lines = []
    for (kind, rate), part in pruned(cells, network, RETRAINED).groupby(["kind", "rate"], sort=False):
        means = [f"{part[name].mean():.4f}" for name in ("mis", "mis_all", "mis_before")]
        lines.append((kind, f"{rate:g}", f"{(part['gone'] / part['units']).mean():.1%}", *means, f"{unpruned:.4f}"))
    return markdown(pd.DataFrame(lines, columns=["kind", "rate", "gone", "left", "all", "before", "unpruned"]))


def _other(cells: pd.DataFrame, network: str, figures: Sequence[str]) -> str:
    rows = cells[cells["network"] == network]
    similarity, count = rows["similarity"].iloc[0], rows["seed"].nunique()
    head = f"Pruned at once; {count} seed{'s' if count > 1 else ''}. Similarity: {similarity}."
    return f"{head}\n\n{_network(cells, network, figures)}"


def _controls(cells: pd.DataFrame, networks: Sequence[str]) -> str:
    lines = []
    for network in networks:
        for name in CONTROLS:
            part = control(cells, network, name)
            if len(part):
                shown = _means(part, "accuracy", "mis", "solved", "mis_divided")
                lines.append((TITLES.get(network, network), name, *shown))
        rows = cells[cells["network"] == network]
        off = ((rows["shuffled"] - 0.5).abs() <= 1.96 * rows["shuffled_error"]).mean()
        mean = rows["shuffled"].mean()
        words = f"shuffled (0.5 within the 95% interval of {off:.0%} of {len(rows)} cells)"
        lines.append((TITLES.get(network, network), words, "", f"{mean:.4f}", "", ""))
    columns = ["network", "control", "accuracy", "MIS", "tasks solved", "MIS, D / alpha"]
    return markdown(pd.DataFrame(lines, columns=columns))


def _scale(protocol: Protocol) -> str:
    most = torch.sigmoid(torch.tensor(4 * protocol.trials.alpha)).item()
    return SCALE.format(alpha=protocol.trials.alpha, most=most, least=1 - most)
