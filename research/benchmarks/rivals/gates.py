"""Learned gates, after GRASPrune (Wang et al. 2026, arXiv 2604.19398): one budget for all, frozen weights.

Symbols: N groups of units of all sites; p [N] gates; c [N] parameters of a group.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from transformers import PreTrainedModel

from hf_mabprune.architectures import Site, projection_of
from hf_mabprune.architectures.cost import Work, unit_cost
from hf_mabprune.architectures.projections import spread
from hf_mabprune.arms import Ints
from hf_mabprune.effects.gradients import frozen
from hf_mabprune.effects.masking import masked
from hf_mabprune.effects.pulls.cost import Cost
from hf_mabprune.progress import over
from hf_mabprune.tasks.base import Task
from hf_mabprune.tasks.batch import Batch
from research.benchmarks.rivals.base import Chosen, blocks, non_embedding_parameters

NOISE = 1e-2  # deviation of the first scores, which decides between gates that nothing has moved yet
Masks = dict[str, torch.Tensor]


def gates(
    model: PreTrainedModel,
    task: Task,
    batches: Sequence[Batch],
    fraction: float,
    *,
    epochs: int = 4,
    scaling_epochs: int = 1,
    learning_rate: float = 0.05,
    scaling_rate: float = 0.01,
    seed: int = 0,
) -> Chosen:
    """Learns which neurons and heads stay, and then what each of them counts.

    A projected straight-through estimator: every step keeps what fits into the budget, in the order of p = sigmoid(s),
    the pass sees these masks, 0 or 1, and gradients go to p as if it had seen p. Then factors of the units that stay
    are learned and multiplied into the weights: its own compensation. Both by Adam, to the dense model's outputs (KL
    divergence), weights frozen. All heads of a layer may go; the keys and values that one key-value head has for all
    are then counted as there in the budget, so a little more goes than was asked for.

    Args:
        model: The dense model, which is left as it is.
        task: Task that reads its outputs.
        batches: Calibration data, a step each.
        fraction: Part of the parameters outside embeddings that goes.
        epochs: Passes over the data for the gates.
        scaling_epochs: Passes for the factors; 0 for none.
        learning_rate: Of the scores s.
        scaling_rate: Of the factors.
        seed: Seed of the first scores.
    """
    sites = [site for pair in blocks(model) for site in pair]
    counts = [site.units // site.group for site in sites]
    costs = [site.group * unit_cost(model, site, Work(0, {}, {}))[0] for site in sites]
    cost = torch.tensor(np.repeat(costs, counts), device=model.device)
    budget = float(cost.sum()) - fraction * non_embedding_parameters(model)
    generator = torch.Generator().manual_seed(seed)
    scores = (NOISE * torch.randn(len(cost), generator=generator)).to(model.device)

    def by_site(values: torch.Tensor) -> Masks:
        parts = zip(sites, values.split(counts), strict=True)
        return {site.name: part.repeat_interleave(site.group).to(model.dtype) for site, part in parts}

    def estimated(scores: torch.Tensor) -> Masks:
        p = scores.sigmoid()
        return by_site(_fitting(p.detach(), cost, budget) + p - p.detach())

    scores = _learned(model, task, batches, scores, estimated, epochs, learning_rate)
    stay = _fitting(scores.sigmoid(), cost, budget)
    keep = {name: np.flatnonzero(mask.cpu().float().numpy()) for name, mask in by_site(stay).items()}
    ones = torch.ones_like(scores)
    factors = _learned(model, task, batches, ones, lambda g: by_site(stay * g), scaling_epochs, scaling_rate)
    passed = (epochs + scaling_epochs) * sum(batch.tokens for batch in batches)
    forward = passed + sum(batch.tokens for batch in batches)  # and the dense model once
    return Chosen(keep, _scaled(model, sites, keep, by_site(factors)), Cost(0, forward, passed))


def _fitting(p: torch.Tensor, cost: torch.Tensor, budget: float) -> torch.Tensor:
    """Gives masks, [N], 1 = keep: what fits into a budget, the largest gates first, past those that are too large."""
    order = p.argsort(descending=True, stable=True)
    stay, left = torch.zeros_like(p), budget
    while len(order):
        room = cost[order].cumsum(0) <= left
        taken = order[room]
        stay[taken] = 1
        left -= float(cost[taken].sum())
        order = order[~room]
        order = order[cost[order] <= left]
    return stay


def _learned(
    model: PreTrainedModel,
    task: Task,
    batches: Sequence[Batch],
    start: torch.Tensor,
    masks: Callable[[torch.Tensor], Mapping[str, torch.Tensor]],
    epochs: int,
    learning_rate: float,
) -> torch.Tensor:
    """Moves numbers so that the model with the masks that they make comes close to the dense one.

    Args:
        start: Where they begin, [N].
        masks: Numbers -> masks by name of the site.
    """
    numbers = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([numbers], learning_rate)
    inputs = [batch.to(model.device) for batch in batches]
    with frozen(model):
        with torch.no_grad():
            dense = [task.readout(model, batch) for batch in inputs] if epochs else []
        for _ in range(epochs):
            for batch, expected in over(list(zip(inputs, dense, strict=True)), "steps"):
                with masked(model, masks=masks(numbers)):
                    loss = task.readout(model, batch).divergence(expected).mean()
                numbers.grad = torch.autograd.grad(loss, numbers)[0]
                optimizer.step()
    return numbers.detach()


def _scaled(
    model: PreTrainedModel, sites: Sequence[Site], keep: Mapping[str, Ints], factors: Masks
) -> dict[str, torch.Tensor]:
    """Multiplies the columns that stay, [D, S], by the factors of their units."""
    weights = {}
    for site in sites:
        weight = projection_of(model, site).weight.detach()
        columns = torch.as_tensor(spread(keep[site.name], site.unit_size), device=weight.device)
        weights[site.name] = weight[:, columns] * factors[site.name].repeat_interleave(site.unit_size)[columns]
    return weights
