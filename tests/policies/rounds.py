"""One round of a search on a table of rewards, for policies that aim at a set."""

import numpy as np

from hf_mabprune.policies.base import Choose, Policy


def top(number: int, alive: np.ndarray) -> Choose:
    """Keeps all living arms but the `number` with the largest scores."""

    def choose(scores: np.ndarray) -> np.ndarray:
        order = np.argsort(np.where(alive, -scores, np.inf), kind="stable")
        kept = alive.copy()
        kept[order[:number]] = False
        return kept

    return choose


def play(
    policy: Policy,
    table: np.ndarray,
    choose: Choose,
    k: int,
    controls: np.ndarray | None = None,
    budget: int | None = None,
) -> np.ndarray:
    """Runs a policy on values [K, batches] until it stops or the budget is spent; returns the pulls of each arm."""
    arms, batches = table.shape
    policy.begin(choose, batches, None if controls is None else controls.mean(1), budget)
    seen = np.zeros(arms, dtype=int)
    while len(chosen := policy.select(k if budget is None else min(k, max(1, budget - int(seen.sum()))))):
        if budget is not None and seen.sum() >= budget:
            break
        values = table[chosen, seen[chosen]]
        given = None if controls is None else controls[chosen, seen[chosen]]
        policy.update(chosen, np.stack([values, values**2], 1), given, seen[chosen])
        seen[chosen] += 1
        assert (seen <= batches).all()
    return seen
