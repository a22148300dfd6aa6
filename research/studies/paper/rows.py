"""The cells of the study: one row for each figure that was measured.

`add_results` adds the finished units of a store, whether or not the run is over, to the small file of all results.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pandas as pd

from research.parquet import write_parquet
from research.studies.store import TIME, check_settings

CLASSIFICATION, REGRESSION, DEEP = SUITES = ("classification", "regression", "deep")
LOSS, KL, NO_REWARD = "loss", "kl", ""
DENSE = "dense"  # the method that removes nothing
TABLES = "tables"  # beside `DEEP`: the two parts of the study, with a protocol each
A_STEP = 3  # forward passes that a step of training costs: one, and about two for the way back
RESULTS = Path(__file__).with_name("results.parquet")  # what the repository holds
KEY = ["suite", "setting", "draw", "method", "reward", "variant", "fraction", "tuned"]
FIGURES = ["fraction", "score", "dense_score", "loss", "kl", TIME]
NAMES = ["suite", "setting", "method", "reward", "variant", "metric"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """Holds the figures of one cell, all of them on test data.

    Attributes:
        suite: One of `SUITES`.
        setting: Name of the table or of the deep setting.
        draw: Number of the split or of the pruning seed.
        method: Name of a policy, criterion or rival; `dense` for the network as it was trained.
        reward: What pulls measured, `loss` or `kl`; empty for a method without pulls.
        variant: What was done otherwise than the study does it, to see what that changes; empty for the study itself.
        fraction: Fraction of the hidden neurons that was removed; 0 for `dense` and for rivals.
        tuned: Whether the network was trained a little further afterwards, as all others were.
        metric: Name of what `score` is.
        score: Quality, the higher the better.
        dense_score: Quality of the dense network of the same setting and draw, not trained further.
        loss: Mean loss; not a number where there is none.
        kl: Mean divergence from the dense network, in nats; not a number where there is none.
        pulls: Number of pulls of the search.
        tokens: Tokens that the search sent forward, or rows of a table, or images; of `dense`, what its training sent
            forward, three times, since a step back costs about two more.
        seconds: Seconds of the search; of `dense` and of rivals, of training.
        chance: Whether the dense network is so near to chance that the setting cannot count.
    """

    suite: str
    setting: str
    draw: int
    method: str
    reward: str = NO_REWARD
    variant: str = ""
    fraction: float = 0.0
    tuned: bool = False
    metric: str
    score: float
    dense_score: float
    loss: float = float("nan")
    kl: float = float("nan")
    pulls: int = 0
    tokens: int = 0
    seconds: float = 0.0
    chance: bool = False

    def __post_init__(self) -> None:
        if self.suite not in SUITES:
            raise ValueError(f"suite must be one of {', '.join(SUITES)}, got '{self.suite}'")


def add_results(runs: Sequence[pd.DataFrame], path: str | Path) -> int:
    """Adds the cells of runs to one small file, which is made where there is none.

    Args:
        runs: Rows as `store.read_cells` gives them.
        path: Parquet file; figures are rounded to what the page of the study shows and a digit more. Its `attrs` hold
            the settings of the parts, `TABLES` and `DEEP`.

    Returns:
        Number of the cells that were not there before. What was there stays, its time taken too.

    Raises:
        ValueError: If the rows of a part were made under different settings, a cell was measured twice and came out
            otherwise, or a deep setting has more than one base network.
    """
    path = Path(path)
    held = read_results(path) if path.is_file() else pd.DataFrame(columns=[field.name for field in fields(Row)])
    settings: dict[Any, Any] = dict(held.attrs)
    rows = _small(held)
    for run in runs:
        part = DEEP if set(run["suite"]) == {DEEP} else TABLES
        check_settings(f"cells of {part}", settings.setdefault(part, dict(run.attrs)), run.attrs, str(path))
        rows = _joined(rows, _small(run))
    dense = rows[rows["suite"] == DEEP].groupby("setting", observed=True)["dense_score"].nunique()
    if several := sorted(dense.index[dense > 1]):
        raise ValueError(f"draws of {', '.join(several)} cut different base networks: take those of one run")
    rows = rows.sort_values(KEY, ignore_index=True)
    rows.attrs = settings
    stored = rows.astype({column: "float32" for column in FIGURES} | {column: "category" for column in NAMES})
    stored.attrs = settings
    write_parquet(path, stored)
    return len(rows) - len(held)


def _small(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows with figures as the file of results holds them."""
    wide = {column: "float64" for column in FIGURES} | {column: "str" for column in NAMES}
    small = rows.astype(wide).round({**dict.fromkeys(FIGURES, 4), TIME: 3})
    small.attrs = {}
    return small


def _joined(held: pd.DataFrame, more: pd.DataFrame) -> pd.DataFrame:
    """Rows of both, each once; raises ValueError where a cell differs in more than the time taken."""
    if not len(held):
        return more
    both = held.merge(more, on=KEY, suffixes=("", " again"))
    for name in (field.name for field in fields(Row) if field.name not in (*KEY, TIME)):
        first, second = both[name], both[f"{name} again"]
        other = (first != second) & ~(first.isna() & second.isna())
        if other.any():
            cell = both.loc[other].iloc[0]
            raise ValueError(
                f"the cell {cell[KEY].to_dict()} has a {name} of {cell[name]} and one of {cell[name + ' again']}: "
                "results of different machines or code cannot stand side by side"
            )
    known = pd.MultiIndex.from_frame(held[KEY])
    fresh = more[~pd.MultiIndex.from_frame(more[KEY]).isin(known)]
    return pd.concat([held, fresh], ignore_index=True)


def read_results(path: str | Path) -> pd.DataFrame:
    """Reads what `add_results` has written; `attrs` holds the settings of the parts."""
    stored = pd.read_parquet(path)
    rows = _small(stored)
    rows.attrs = dict(stored.attrs)
    return rows
