"""Where a search is, or ended: the arms that stay, the order of removal, and what every round did.

Symbols: K arms.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hf_mabprune.arms import ArmTable
from hf_mabprune.errors import OutsideError, outside
from hf_mabprune.states import WHOLE, Entry, Values, read_state

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Round:
    """What one round did: for the log, the report and the figures."""

    number: int
    removed: int  # arms gone after the round
    removed_fraction: float  # of the target
    pulls: int  # so far
    kl: float  # mean over one batch, after the removal
    loss: float
    loss_before: float  # of the dense model on the same batch
    seconds: float  # spent on pulls so far


ANY_NUMBER = Values(float, (), -np.inf, np.inf, nan=True)  # what was measured may be beyond what floats hold
ROUND: Mapping[str, Entry] = {
    "number": Values(int, (), 1, WHOLE),
    "removed": Values(int, (), 0, WHOLE),
    "removed_fraction": Values(float, (), 0, 1),
    "pulls": Values(int, (), 0, WHOLE),
    "kl": ANY_NUMBER,
    "loss": ANY_NUMBER,
    "loss_before": ANY_NUMBER,
    "seconds": Values(float, (), 0),
}

COLUMNS: Mapping[str, Entry] = {  # of the table of arms, beside those of `ArmTable`
    "pulls": Values(int, low=0, high=WHOLE),
    "mean": Values(float, low=-np.inf),  # of an arm that was never pulled
    "removed_round": Values(int, low=0, high=WHOLE),
    "order": Values(int, low=0),
}


@dataclass
class SearchResult:
    """Where a search is, or ended.

    Attributes:
        kept: [K], the arms that stay.
        order: The arms removed so far, in their order; of a finished search [K], all arms: the removed, then the kept,
            least harmful first.
        scores: [K], mean reward of each arm in the context it was last pulled in.
        pulls: [K], number of pulls of each arm.
        removed_round: [K], 1-based; 0 for arms that stay.
        broken: Calibration batches that were skipped because their loss is not finite.
    """

    kept: Bools
    order: Ints
    scores: Floats
    pulls: Ints
    removed_round: Ints
    rounds: list[Round] = field(default_factory=list)
    broken: list[int] = field(default_factory=list)
    stopped_because: str = "target reached"

    @classmethod
    def of_all(cls, arms: int) -> "SearchResult":
        """Where a search of so many arms begins."""
        return cls(
            kept=np.ones(arms, dtype=bool),
            order=np.empty(0, dtype=np.int64),
            scores=np.full(arms, -np.inf),
            pulls=np.zeros(arms, dtype=np.int64),
            removed_round=np.zeros(arms, dtype=np.int64),
        )

    @classmethod
    def from_table(cls, table: pd.DataFrame, arms: ArmTable, rounds: list[dict[str, Any]]) -> "SearchResult":
        """Reads `table` back.

        Args:
            table: [K rows], as it was read from a file.
            arms: All arms of the model.
            rounds: What every round did, from the report beside the table.

        Raises:
            ValueError: If the table is of other arms, or none that a search leaves behind.
        """
        with outside("the table of arms is not as a search leaves it", "take a run that is as it was written"):
            _check_arms(table, arms)
            columns = {name: table[name].to_numpy() for name in COLUMNS}
            read = read_state("arms", columns, COLUMNS, {"K": len(arms)})
            place, removed_round = read["order"], read["removed_round"]
            order = np.argsort(place, kind="stable")
            if not np.array_equal(place[order], np.arange(len(arms))):
                raise ValueError("order must have every place once")
            removed = removed_round[order][: np.count_nonzero(removed_round)]
            if not removed.all() or (np.diff(removed) < 0).any():
                raise ValueError("order must begin with the arms that were removed, round by round")
            return cls(
                kept=removed_round == 0,
                order=order,
                scores=read["mean"],
                pulls=read["pulls"],
                removed_round=removed_round,
                rounds=[Round(**done) for done in rounds],
            )

    def table(self, arms: ArmTable, kept: Bools) -> pd.DataFrame:
        """One row an arm: what it is, what was found out about it, and whether it stays in the final model."""
        return arms.to_frame().assign(
            pulls=self.pulls,
            mean=self.scores,
            kept=kept,
            removed_round=self.removed_round,
            order=np.argsort(self.order),
        )


def _check_arms(table: pd.DataFrame, arms: ArmTable) -> None:
    """Raises ValueError for the table of other arms."""
    for name in ("site", "kind", "layer", "index", "start", "stop"):
        if table[name].tolist() != getattr(arms, name).tolist():
            raise OutsideError(
                f"the finished search had {len(table):,} arms that do not fit this model's {len(arms):,} (in {name}): "
                "keep its model, arms and block_size"
            )
