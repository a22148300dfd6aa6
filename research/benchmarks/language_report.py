"""The table of the rows of the language-model benchmark, with ranks and intervals."""

from pathlib import Path

import numpy as np
import pandas as pd

from hf_mabprune.evaluation.quality import percentiles, resample
from research.benchmarks.language import ITS_OWN
from research.benchmarks.language_rows import Measured, read_rows
from research.benchmarks.rivals import RIVALS

MEASURES = ("kl", "perplexity")


def report(path: str | Path) -> str:
    """Writes the rows of a file as markdown: what counts of each method, mean ranks, and the first beside the others.

    Raises:
        OSError: If there is no such file.
    """
    rows = taken(read_rows(path))
    frame = flat(rows)
    ranks, parts = mean_ranks(frame), []
    for text, own in frame.groupby("text", sort=False):
        cells = own.assign(cell=[f"{kl:.4g} / {p:.4g}" for kl, p in zip(own["kl"], own["perplexity"], strict=True)])
        table = cells.pivot(index="method", columns="size", values="cell").reindex(ranks.index).fillna("")
        table.columns = [f"{size:.0%}" for size in table.columns]
        dense = own["dense_perplexity"].iloc[0]
        parts.append(f"**{text}**, KL / perplexity (dense {dense:.4g})\n\n{table.to_markdown()}")
    parts.append(f"**Mean ranks**\n\n{ranks.to_markdown(floatfmt='.2f')}")
    ratios = against_the_best(frame, ranks.index[0])
    if answers := accuracies(rows):
        parts.append(answers)
    title = f"**KL of {ranks.index[0]} over that of the best other**, with 95% intervals"
    parts.append(f"{title}\n\n{ratios.to_markdown(index=False, floatfmt='.3f')}")
    return "\n\n".join(parts)


def taken(rows: list[Measured]) -> list[Measured]:
    """Picks of each method, size and compensation the allocation with the lowest KL on the validation split."""
    best: dict[tuple[str, float, str], Measured] = {}
    for row in sorted(rows, key=lambda row: row["validation_kl"]):
        best.setdefault((row["method"], row["size"], row["compensation"]), row)
    return [row for row in rows if any(row is other for other in best.values())]


def flat(rows: list[Measured]) -> pd.DataFrame:
    """Gives a row for each text, and each rival a name for each of its compensations."""
    return pd.DataFrame(
        [
            {"method": label(row), "size": row["size"], "text": name, **text}
            for row in rows
            for name, text in row["texts"].items()
        ]
    )


def label(row: Measured) -> str:
    """Names a method; a rival with its compensation."""
    if row["method"] not in RIVALS or row["compensation"] == ITS_OWN:
        return str(row["method"])
    return f"{row['method']}, {row['compensation']}"


def accuracies(rows: list[Measured]) -> str:
    """Writes the parts of questions that are answered right, with their 95% intervals; nothing without questions."""
    found = [
        {"method": label(row), "size": f"{row['size']:.0%}", "questions": name, "accuracy": share(quiz["right"])}
        for row in rows
        for name, quiz in row["quizzes"].items()
    ]
    if not found:
        return ""
    dense = {name: share(quiz["dense_right"]) for row in rows for name, quiz in row["quizzes"].items()}
    title = ", ".join(f"{name} (dense {accuracy})" for name, accuracy in dense.items())
    table = pd.DataFrame(found).pivot(index="method", columns=["questions", "size"], values="accuracy").fillna("")
    table.columns = [" ".join(names) for names in table.columns]
    return f"**Questions answered right**: {title}\n\n{table.to_markdown()}"


def share(right: list[bool]) -> str:
    """Writes the mean, and its 95% interval."""
    values = np.array(right, dtype=float)
    low, high = percentiles(resample(lambda rows: float(values[rows].mean()), len(values)))
    return f"{values.mean():.3f} ({low:.3f} to {high:.3f})"


def mean_ranks(frame: pd.DataFrame) -> pd.DataFrame:
    """Ranks the methods at each size and text, and averages; the first by KL comes first.

    A method that lacks some has the mean of what it has.
    """
    groups = frame.groupby(["size", "text"])
    ranks = frame[["method"]].assign(**{name: groups[name].rank() for name in MEASURES})
    return ranks.groupby("method").mean().sort_values(list(MEASURES))


def against_the_best(frame: pd.DataFrame, first: str) -> pd.DataFrame:
    """Compares a method with the best of the others, at each size and text: ratio of KL, and its interval."""
    found = []
    for (text, size), rows in frame.groupby(["text", "size"], sort=False):
        own, others = rows[rows["method"] == first], rows[rows["method"] != first]
        if len(own) and len(others):
            best = others.sort_values("kl").iloc[0]
            values = ratio(own["window_kl"].iloc[0], best["window_kl"])
            found.append((text, size, best["method"], *values))
    return pd.DataFrame(found, columns=["text", "size", "best other", "ratio", "low", "high"])


def ratio(first: list[float], second: list[float]) -> tuple[float, float, float]:
    """Gives the ratio of two mean KL divergences on the same windows, and its 95% interval (paired bootstrap)."""
    one, other = np.array(first), np.array(second)
    resampled = resample(lambda rows: float(one[rows].mean() / other[rows].mean()), len(one))
    return float(one.mean() / other.mean()), *percentiles(resampled)
