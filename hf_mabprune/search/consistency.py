"""Whether a saved search is one that settings and data come to: found out before it goes on."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from hf_mabprune.search.result import Ints, Round
from hf_mabprune.selection.plan import Plan


@dataclass(frozen=True)
class Consistency:
    """What a search may come to.

    Attributes:
        plan: How many arms go, and which may.
        budgets: Pulls of each round.
        batches: Number of calibration batches.
        broken: How many of them may be skipped.
        arms_a_forward: Arms that a forward pass pulls at first.
    """

    plan: Plan
    budgets: Sequence[int]
    batches: int
    broken: int
    arms_a_forward: int

    def contradictions(self, state: dict[str, Any]) -> Iterator[str]:
        """Says what in a state cannot be, in a few words each, though every entry is as `Search.STATE` describes it.

        A check counts on those before it.
        """
        order, rounds, pulls, seen = (state[name] for name in ("order", "rounds", "pulls", "seen"))
        number, ended = len(rounds) + 1, len(rounds) == len(self.budgets)
        if (seen > pulls).any():
            yield "more pulls in a round than in all"
        if not self._in_turn(rounds, len(order), int((pulls - seen).sum())):
            yield "its rounds are not those of such a search"
        if not self._removable(order):
            yield "arms are gone that cannot go"
        if seen[order].any() or seen.sum() > (0 if ended else self.budgets[number - 1]):
            yield "pulls of arms that are gone, or more than there are in a round"
        begun = bool(seen.any()) or state["settling"]
        if state["paid_rounds"] not in ([number - 1] if ended else [number] if begun else [number - 1, number]):
            yield "paid_rounds is of another round"
        if ended and state["settling"]:
            yield "it is over and goes on"
        if not _are_different(state["broken"], self.batches) or len(state["broken"]) > self.broken:
            yield "batches are broken that there are not, twice, or more than may be"
        if state["arms_a_forward"] > max(self.arms_a_forward, len(pulls)):
            yield "more arms a forward pass than there are"

    def _in_turn(self, rounds: Sequence[Round], removed: int, pulls: int) -> bool:
        """Whether rounds are the first ones of this search, and end with so many arms removed and pulls made."""
        so_far = [(0, 0), *((done.removed, done.pulls) for done in rounds)]
        return (
            len(rounds) <= len(self.budgets)
            and so_far[-1] == (removed, pulls)
            and all(
                done.number == number and done.removed_fraction == number / len(self.budgets)
                for number, done in enumerate(rounds, start=1)
            )
            and all(before[0] <= after[0] for before, after in pairwise(so_far))
            and all(
                0 <= after[1] - before[1] <= budget
                for (before, after), budget in zip(pairwise(so_far), self.budgets, strict=False)
            )
        )

    def _removable(self, order: Ints) -> bool:
        """Whether arms are different ones that the plan may remove, and leave the floor of their sites."""
        plan, kept = self.plan, np.ones(len(self.plan.arms), dtype=bool)
        candidates = np.concatenate([budget.candidates for budget in plan.budgets])
        if not (_are_different(order.tolist(), len(kept)) and np.isin(order, candidates).all()):
            return False
        kept[order] = False
        return all(kept[rows].all() or kept[rows].sum() >= plan.floors[site] for site, rows in plan.arms.groups())


def _are_different(numbers: Sequence[int], limit: int) -> bool:
    """Whether no number occurs twice, and all are in [0, limit)."""
    return len(set(numbers)) == len(numbers) and all(0 <= number < limit for number in numbers)
