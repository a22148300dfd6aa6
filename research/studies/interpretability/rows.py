"""The cells of the study: one row for each network that was pruned one way, and for each control."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from research.parquet import write_parquet
from research.studies.store import PROTOCOL, TIME, read_cells

KEY = ("network", "seed", "kind", "schedule", "rate")
CONTROL = ""  # the kind of a network that nothing was pruned of
UNPRUNED, TRAINED_ON, TRAINED_LONG, UNTRAINED, DIRECTIONS = CONTROLS = (
    "unpruned",
    "unpruned, trained on",
    "unpruned, trained on longer",
    "untrained",
    "random directions",
)
BASE = ["network", "seed"]  # what base networks are told apart by
NAMES = ["network", "similarity", "kind", "schedule"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """Holds the figures of one cell.

    Attributes:
        network: One of `protocol.NETWORKS`.
        similarity: What scores are made with, in words.
        same_class: Share of probes whose nearest other probe by that similarity is of their class.
        seed: Seed of weights, order of training and tasks.
        kind: Kind of sparsity; empty for a control.
        schedule: Schedule, or name of the control.
        rate: Part of the counted weights that should go.
        epochs: Further training in all.
        accuracy: Share of test inputs that are classified rightly.
        mis: Mean score of the units that any probe changes.
        solved: Mean share of their tasks that are solved.
        mis_divided: Mean score where the sigmoid is of D / alpha in the place of alpha D.
        mis_all: Mean score of all units, those that were pruned away taken for 0.5.
        mis_before: Mean score that the units of `mis` had in the unpruned network.
        shuffled: Mean score of the same units after their activations were given to other probes.
        shuffled_error: Standard error of that, over units.
        units: Units looked at.
        gone: Those of them that no probe changes.
        cut: Part of the counted weights that was zero after the last step, before its training.
        zeros: The same at the end.
        seconds: Seconds that the cell took.
    """

    network: str
    similarity: str
    same_class: float
    seed: int
    kind: str = CONTROL
    schedule: str
    rate: float = 0.0
    epochs: float = 0.0
    accuracy: float = float("nan")
    mis: float = float("nan")
    solved: float = float("nan")
    mis_divided: float = float("nan")
    mis_all: float = float("nan")
    mis_before: float = float("nan")
    shuffled: float = float("nan")
    shuffled_error: float = float("nan")
    units: int = 0
    gone: int = 0
    cut: float = 0.0
    zeros: float = 0.0
    seconds: float = 0.0


def write_results(folder: str | Path, path: str | Path) -> None:
    """Takes the finished units of a run, whether or not it is over, into one small file.

    Args:
        folder: Store of the run.
        path: Parquet file; its `attrs` hold the protocol. What it holds of the same protocol stays beside the rows of
            the run, but for rows that the run has too, and for a network and seed whose unpruned figures are others
            there, or are missing here: all rows of a network and a seed are of one base network.
    """
    path = Path(path)
    rows = read_cells(folder, KEY)
    protocol = rows.attrs[PROTOCOL]
    rows.attrs.clear()
    if path.is_file():
        held = read_results(path)
        if held.attrs.pop(PROTOCOL) == protocol:
            rows = pd.concat([_beside(held, rows), rows])
    rows = rows.sort_values([*KEY], ignore_index=True).round({TIME: 1}).astype(dict.fromkeys(NAMES, "category"))
    rows.attrs[PROTOCOL] = protocol
    write_parquet(path, rows)


def _beside(held: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """Gives those of the rows held that can stand beside others."""
    figures = [frame.loc[frame["schedule"] == UNPRUNED, [*BASE, "accuracy", "mis"]] for frame in (held, rows)]
    same = pd.MultiIndex.from_frame(figures[0].merge(figures[1])[BASE])
    base, key = (pd.MultiIndex.from_frame(held[columns]) for columns in (BASE, list(KEY)))
    there = pd.MultiIndex.from_frame(rows[BASE])
    stays = ~base.isin(there) | base.isin(same) & ~key.isin(pd.MultiIndex.from_frame(rows[list(KEY)]))
    return held[stays]


def read_results(path: str | Path) -> pd.DataFrame:
    """Reads what `write_results` has written."""
    stored = pd.read_parquet(path)
    rows = stored.astype(dict.fromkeys(NAMES, "str"))
    rows.attrs.update(stored.attrs)
    return rows


def pruned(cells: pd.DataFrame, network: str, schedules: Sequence[str] = ()) -> pd.DataFrame:
    """Gives the cells of a network that something was pruned of, of some schedules or of all."""
    rows = cells[(cells["network"] == network) & (cells["kind"] != CONTROL)]
    return rows[rows["schedule"].isin(list(schedules))] if schedules else rows


def with_base(cells: pd.DataFrame) -> pd.DataFrame:
    """Gives the cells of the base networks that were measured unpruned, which all others are compared with."""
    measured = pd.MultiIndex.from_frame(cells.loc[cells["schedule"] == UNPRUNED, BASE])
    rows = cells[pd.MultiIndex.from_frame(cells[BASE]).isin(measured)]
    rows.attrs = cells.attrs
    return rows


def control(cells: pd.DataFrame, network: str, name: str) -> pd.DataFrame:
    """Gives the cells of one control of a network, one a seed, by seed."""
    rows = cells[(cells["network"] == network) & (cells["kind"] == CONTROL) & (cells["schedule"] == name)]
    return rows.set_index("seed")
