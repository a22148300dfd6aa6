"""Costs of removals as they are once all that stays is refitted, found before any pull.

A layer whose arms stand in for each other loses little when one goes, but masking does not show it: the stand-ins have
other weights until they are refitted. A search that counts on the compensation after it (`search.rules.refit`) brings
three things together, each blind to something:

- `along`, the cost of each arm in the order in which its layer's arms go, each removal followed by a refit of what
  stays (`obs.increases`), in the metric of the outputs (`kfac`). It sees sets, but takes positions as independent.
- pulls with stand-ins (`masking.StandIn`): the model itself, with one arm replaced by what the others of its layer
  predict of it. They see the outputs as they are, but one arm at a time; `alone` is what `along` would say of them.
- effects with stand-ins, from gradients (`gradients.effects`): what pulls would say, to second order, for all arms.

The cost that removals go by is `along`, corrected by measured over predicted cost of the arm alone. With V = root(G) W
the weights in the metric of the outputs and H = A + lambda I (`kfac.KfacFactors`), the quadratic model is
KL ~ 1/2 tr(dV H dV'), the objective of `obs`.
Symbols: K arms; D outputs and C columns of a projection; S the columns of one arm.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from transformers import PreTrainedModel

from hf_mabprune.architectures import Site, architecture_of, projection_of
from hf_mabprune.architectures.sites import members
from hf_mabprune.arms import ArmTable
from hf_mabprune.checkpoints.weight_files import largest
from hf_mabprune.effects.damping import damped
from hf_mabprune.effects.kfac import KfacFactors, bytes_of, kfac_factors
from hf_mabprune.effects.masking import StandIn
from hf_mabprune.effects.memory import Sizes
from hf_mabprune.effects.obs import increases, inverted
from hf_mabprune.effects.pulls.cost import Cost
from hf_mabprune.effects.reserve import Reserve
from hf_mabprune.effects.routed import sent_to_experts
from hf_mabprune.progress import over
from hf_mabprune.selection.plan import Floats, Ints
from hf_mabprune.surgery.biases import may_have_bias
from hf_mabprune.tasks.base import Task
from hf_mabprune.tasks.batch import Batch

MATRICES = 3  # of the size of float32 moments, that the widest site takes while its arms are ordered
DAMPING = 0.01  # ridge, relative to the mean of the diagonal of the second moments


@dataclass(frozen=True)
class RefitCosts:
    """What is known of removals with refits before any pull.

    Attributes:
        along: [K], cost in nats of each arm as the last of its layer's that have gone, refitted.
        evenly: [K], the same if outputs moved alike with every direction of the projection's output: with tr(G) / D I
            for G, which few draws tell better than all of G. Of experts: what they add where they are asked
            (`Routed.added`), in proportion, with the same sum as their `along`.
        alone: [K], cost of each arm as the first.
        stand_ins: What comes in the place of each arm, by name of its site; experts have none.
        cost: What finding this out took.
    """

    along: Floats
    evenly: Floats
    alone: Floats
    stand_ins: Mapping[str, StandIn]
    cost: Cost

    @classmethod
    def of(
        cls,
        model: PreTrainedModel,
        arms: ArmTable,
        task: Task,
        batches: Sequence[Batch],
        seed: int = 0,
        damping: float = DAMPING,
        reserve: Reserve | None = None,
    ) -> "RefitCosts":
        """Finds them out from one forward and a few backwards a batch, and O(C^3) a site.

        Sites go through the model in groups, as many at a time as there is room for.

        Args:
            model: Dense model, in evaluation mode.
            arms: All arms.
            task: Gives the logits that count.
            batches: Mini-batches of calibration data.
            seed: Seed of the label draws.
            damping: Ridge of the refits, relative to the mean of the diagonal of the second moments.
            reserve: Memory for factors and stand-ins; None takes one of its own.
        """
        start, reserve = time.perf_counter(), Reserve() if reserve is None else reserve
        everything = architecture_of(model).sites(model)
        places = {site.name: site for site in everything}
        todo = [(places[name], rows, members(places[name], everything)) for name, rows in arms.groups()]
        along, evenly, alone = (np.empty(len(arms)) for _ in range(3))
        stand_ins: dict[str, StandIn] = {}
        sweeps = passes = 0
        for together in reserve.groups(todo, lambda entry: sum(bytes_of(model, part) for part in entry[2])):
            parts = list({part.name: part for *_, own in together for part in own}.values())
            factors, passes = kfac_factors(model, task, batches, parts, seed)
            sweeps += 1
            for site, rows, own in over(together, "costs of removals", "sites"):
                if site.kind == "expert":
                    along[rows] = [whole_cost(model, part, factors[part.name]) for part in own]
                    alone[rows] = along[rows]
                else:
                    evenly[rows] = _evenly_at(model, arms, site, rows, factors[site.name], damping)
                    along[rows], alone[rows], made = _costs_at(model, arms, site, rows, factors[site.name], damping)
                    stand_ins[site.name] = replace(made, matrix=reserve.kept(made.matrix))
            del factors
        experts = [(site, rows, own) for site, rows, own in todo if site.kind == "expert"]
        if experts:
            rows = np.concatenate([rows for _, rows, _ in experts])
            evenly[rows] = _added(model, task, batches, experts)
            evenly[rows] *= along[rows].sum() / max(evenly[rows].sum(), np.finfo(float).tiny)
        tokens, seconds = sum(batch.tokens for batch in batches), time.perf_counter() - start
        cost = Cost(0, tokens * (sweeps + bool(experts)), tokens * passes * sweeps, seconds)
        return cls(along, evenly, alone, stand_ins, cost)


def _added(
    model: PreTrainedModel, task: Task, batches: Sequence[Batch], experts: Sequence[tuple[Site, Ints, Sequence[Site]]]
) -> list[float]:
    """Lists `Routed.added` of all experts, of one site of whole experts after the other."""
    sent = sent_to_experts(model, task, batches, [site for site, *_ in experts])
    return [sent[part.name].added for *_, own in experts for part in own]


def in_outputs(model: PreTrainedModel, site: Site, kfac: KfacFactors) -> tuple[torch.Tensor, torch.Tensor]:
    """Gives V = root(G) W [D, C] float64, and A [C, C] of a site; A is centred where a bias may take up the means."""
    return kfac.root() @ projection_of(model, site).weight.detach().double(), _inputs(model, site, kfac)


def _inputs(model: PreTrainedModel, site: Site, kfac: KfacFactors) -> torch.Tensor:
    """A of a site, centred where a bias may take up the means."""
    if not may_have_bias(model, site):
        return kfac.inputs.second
    return kfac.inputs.covariance().to(kfac.inputs.second.dtype)


def _evenly_at(
    model: PreTrainedModel, arms: ArmTable, site: Site, rows: Ints, kfac: KfacFactors, damping: float
) -> Floats:
    """Gives `evenly` of the arms of a site; arguments as those of `_costs_at`."""
    weight = projection_of(model, site).weight.detach().double()
    size = int(arms.units[rows].max()) * site.unit_size
    second = _inputs(model, site, kfac)
    return increases(weight, second, size, len(rows), damping) * float(kfac.outputs.diagonal().mean()) / 2


def whole_cost(model: PreTrainedModel, site: Site, kfac: KfacFactors) -> float:
    """Gives 1/2 tr(V A V'), the cost in nats of a site that goes as a whole, with nothing in its place: an expert."""
    weight, second = in_outputs(model, site, kfac)
    return float((weight @ second.double() * weight).sum()) / 2


def _costs_at(
    model: PreTrainedModel, arms: ArmTable, site: Site, rows: Ints, kfac: KfacFactors, damping: float
) -> tuple[Floats, Floats, StandIn]:
    """Gives `along` and `alone` of the arms of a site, and their stand-ins.

    Args:
        rows: Arms of the site, in the order of their columns.
        damping: As that of `RefitCosts.of`.
    """
    weight, second = in_outputs(model, site, kfac)
    size = int(arms.units[rows].max()) * site.unit_size
    along = increases(weight, second, size, len(rows), damping) / 2
    alone, matrix = _apart(weight, second, _spans(arms, site, rows), damping, model.dtype)
    mean = kfac.inputs.mean if may_have_bias(model, site) else torch.zeros_like(kfac.inputs.mean)
    return along, alone, StandIn(mean.to(model.dtype), matrix)


def _spans(arms: ArmTable, site: Site, rows: Ints) -> list[slice]:
    """Gives the columns S of each arm of a site."""
    return [slice(int(arms.start[row]) * site.unit_size, int(arms.stop[row]) * site.unit_size) for row in rows]


def _apart(
    weight: torch.Tensor, second: torch.Tensor, spans: Sequence[slice], damping: float, dtype: torch.dtype
) -> tuple[Floats, torch.Tensor]:
    """Removes each arm of a site by itself, as `obs` does it first in its order.

    Args:
        weight: V, [D, C], in the metric of the outputs.
        second: A, [C, C].
        spans: Columns S of each arm.
        damping: As that of `RefitCosts.of`.
        dtype: Precision of the matrix.

    Returns:
        Costs, 1/2 tr(V_S ([H^-1]_SS)^-1 V_S') for the columns S of each arm; and the matrix of `StandIn`,
        [H^-1]_:,S ([H^-1]_SS)^-1 side by side. The refit of W is dW = -W_S times that block transposed (see `obs`), so
        that W + dW on h, and W on h with the stand-in, are one and the same.
    """
    if not second.diagonal().any():  # nothing ever flows in
        return np.zeros(len(spans)), torch.zeros_like(second, dtype=dtype)

    def remove(strength: float) -> tuple[Floats, torch.Tensor] | None:
        hessian = second.to(torch.float64, copy=True)
        hessian.diagonal().add_(strength)
        inverse = inverted(hessian)
        if inverse is None:
            return None
        if len(spans) == len(second):  # columns one by one, all at once
            own = inverse.diagonal()
            costs = (weight.square().sum(0) / own / 2).cpu().numpy()
            return (costs, (inverse / own).to(dtype)) if np.isfinite(costs).all() else None
        matrix, costs = torch.empty_like(second, dtype=dtype), np.empty(len(spans))
        for block, span in enumerate(spans):
            own = inverse[span, span]
            matrix[:, span] = torch.linalg.solve(own, inverse[span]).T
            costs[block] = float((torch.linalg.solve(own, weight[:, span].T) * weight[:, span].T).sum()) / 2
        return (costs, matrix) if np.isfinite(costs).all() and matrix.isfinite().all() else None

    first = damping * second.diagonal().double().mean().clamp(min=torch.finfo(torch.float64).tiny)
    return damped(remove, float(first), largest(second))


def memory(sizes: Sizes) -> tuple[int, int]:
    """Estimates bytes: of what is formed while costs are found, and of the stand-ins, were there no limit."""
    widest = MATRICES * max(sizes.squares) + 4 * 8 * sizes.hidden * max(sizes.columns)
    return sizes.together(2) + widest, sizes.item * sum(sizes.squares) // 4
