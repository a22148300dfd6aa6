"""Controls that measure whole sets of arms on mini-batches, within a budget of forward tokens: what a search that
measures arms one by one has to beat.

Fitness is the mean KL divergence of the masked model from the dense one. A set is written as scores, [K], from
which the plan chooses: so every candidate meets the target, in every layout.
"""

from collections.abc import Callable, Sequence

import numpy as np
from sklearn.linear_model import RidgeCV

from hf_mabprune.effects.pulls import Pulls
from hf_mabprune.progress import stage
from hf_mabprune.selection.plan import Bools, Floats, Ints, Plan

OFFSPRING = 16  # in a generation
SURVIVORS = 4  # of the first look, which are looked at again
AGAIN = 4  # batches of the second look; the first has one
EXCHANGES = 3  # at most, that make a mutation
PENALTIES = np.logspace(-3, 3, 13)  # of the regression, chosen by leave-one-out error

Control = Callable[[Pulls, Plan, int, int], Bools]


def evolution(pulls: Pulls, plan: Plan, tokens: int, seed: int) -> Bools:
    """Finds a set by mutation and selection, after Sieberling et al. 2024 (EvoPress, arXiv 2410.14649).

    One parent; offspring differ by one to three exchanges of an arm that goes with one that stays; selection in two
    steps, the second on more data and with the parent. The first parent is the best of random sets.

    Args:
        pulls: Pulls that measure sets.
        plan: What has to go, from which arms.
        tokens: Forward tokens that may be spent.
        seed: Seed of all draws.

    Returns:
        [K], what stays.
    """
    rng, turn = np.random.default_rng(seed), 0
    everything = np.ones(len(plan.arms), dtype=bool)

    def fittest(candidates: Sequence[Floats], batches: int, number: int) -> list[Floats]:
        nonlocal turn
        chosen = [(turn + at) % len(pulls.batches) for at in range(batches)]
        turn += batches
        losses = [_divergence(pulls, plan.choose(scores, everything)[0], chosen) for scores in candidates]
        return [candidates[place] for place in np.argsort(losses, kind="stable")[:number]]

    parent = fittest([rng.random(len(plan.arms)) for _ in range(OFFSPRING)], 1, 1)[0]
    with stage("search", tokens, "tokens") as work:
        while pulls.cost.forward_tokens < tokens:
            kept, _ = plan.choose(parent, everything)
            offspring = [_mutated(parent, kept, plan, rng) for _ in range(OFFSPRING)]
            parent = fittest([*fittest(offspring, 1, SURVIVORS), parent], AGAIN, 1)[0]
            work.count(round(pulls.cost.forward_tokens))
    return plan.choose(parent, everything)[0]


def mask_regression(pulls: Pulls, plan: Plan, tokens: int, seed: int) -> Bools:
    """Finds a set by a ridge regression, after Dery et al. 2024 (Bonsai, arXiv 2402.05406), in one step.

    Random sets of the target's size are measured, one batch each, and their divergence is regressed on what went, no
    prior; the arms with the smallest coefficients go.

    Takes and returns the same as `evolution`.
    """
    rng = np.random.default_rng(seed)
    everything = np.ones(len(plan.arms), dtype=bool)
    removed: list[Bools] = []
    losses: list[float] = []
    with stage("search", tokens, "tokens") as work:
        while pulls.cost.forward_tokens < tokens or len(losses) < 2:
            kept, _ = plan.choose(rng.random(len(plan.arms)), everything)
            removed.append(~kept)
            losses.append(_divergence(pulls, kept, [len(losses) % len(pulls.batches)]))
            work.count(round(pulls.cost.forward_tokens))
    fitted = RidgeCV(PENALTIES).fit(np.array(removed, dtype=float), losses)
    return plan.choose(-fitted.coef_, everything)[0]


CONTROLS: dict[str, Control] = {"evolution": evolution, "mask_regression": mask_regression}


def _divergence(pulls: Pulls, kept: Bools, batches: Sequence[int]) -> float:
    """Mean over some batches."""
    return float(np.mean([float(pulls.observe(batch, kept).kl.mean()) for batch in batches]))


def _mutated(scores: Floats, kept: Bools, plan: Plan, rng: np.random.Generator) -> Floats:
    """Scores after a few exchanges of arms that cost the same under one budget."""
    scores = scores.copy()
    for _ in range(int(rng.integers(1, EXCHANGES + 1, 2).min())):
        budget = plan.budgets[int(rng.integers(len(plan.budgets)))]
        stays = kept[budget.candidates]
        going: Ints = rng.permutation(budget.candidates[~stays])[:1]
        staying = budget.candidates[stays]
        other: Ints = rng.permutation(staying[np.isin(budget.cost[staying], budget.cost[going])])[: len(going)]
        going = going[: len(other)]
        scores[[*going, *other]] = scores[[*other, *going]]
    return scores
