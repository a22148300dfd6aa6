"""Which of a method's allocations counts, and what the other one would have given. Pure: frames in, frames out.

`own` follows a method's ranking over all layers; `equal` follows its order within each layer and keeps the same number
of units everywhere, to within one arm, so that both have the same size.
"""

import numpy as np
import pandas as pd

from research.benchmarks.specs import EQUAL, OWN
from research.benchmarks.suite import KEY

CELL = [name for name in KEY if name != "allocation"]


def complete(rows: pd.DataFrame, wanted: pd.DataFrame) -> pd.DataFrame:
    """Picks the rows of cells of which all allocations that are wanted have one.

    Args:
        rows: Rows of the benchmark.
        wanted: Columns `KEY`, in the order that the result takes.
    """
    counted = wanted.assign(wanted=wanted.groupby(CELL)["allocation"].transform("size"))
    found = counted.merge(rows, on=KEY)
    there = found.groupby(CELL)["allocation"].transform("size") == found["wanted"]
    return found[there].drop(columns="wanted").reset_index(drop=True)


def taken(rows: pd.DataFrame) -> pd.Series:
    """Finds the rows that count, [n] bool: of each cell that with the lowest KL divergence on held-out data; of equals
    the first.
    """
    best = rows["held_out_kl"].fillna(np.inf).groupby([rows[name] for name in CELL], sort=False).idxmin()
    return rows.index.to_series().isin(best)


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Says for each method and compensation which allocation counted how often, and what the other would have given.

    Args:
        rows: Rows of the benchmark, with `taken`.

    Returns:
        Indexed by method and compensation, with the columns own and equal (cells in which that one counted); retained
        and mean_kl of those that counted and of the others, means on the test split over cells that have both; and
        other_better, the cells of which the other has the lower KL divergence on the test split.
    """
    variant = ["method", "compensation"]
    counted = rows[rows["taken"]].set_index(CELL)
    other = rows[~rows["taken"]].set_index(CELL)[["retained", "mean_kl"]]
    both = counted.merge(other, left_index=True, right_index=True, suffixes=("", "_other"))
    both["other_better"] = both["mean_kl_other"] < both["mean_kl"]
    table = counted.groupby(variant, sort=False)["allocation"].value_counts().unstack(fill_value=0)
    table = table.reindex(columns=[OWN, EQUAL], fill_value=0).reindex(
        counted.groupby(variant, sort=False).size().index
    )
    figures = both.groupby(variant, sort=False)
    means = figures[["retained", "retained_other", "mean_kl", "mean_kl_other"]].mean()
    return table.join(means).join(figures["other_better"].sum())


def both_of(rows: pd.DataFrame, measure: str) -> pd.Series:
    """Writes what every allocation of a method gives and which one counts, e.g. `0.1 / 0.2 own`, by method,
    compensation and target: means over seeds.

    Args:
        rows: Rows of one data set, with `taken`.
        measure: Column that is shown.
    """
    return rows.groupby(["method", "compensation", "target"], sort=False).apply(lambda cells: _both(cells, measure))


def _both(rows: pd.DataFrame, measure: str) -> str:
    values = rows.groupby("allocation", sort=False)[measure].mean()
    counts = rows[rows["taken"]]["allocation"].value_counts()
    names = counts.index if len(counts) == 1 else [f"{name} {count}" for name, count in counts.items()]
    return f"{' / '.join(f'{value:.4g}' for value in values)} {', '.join(names)}"
