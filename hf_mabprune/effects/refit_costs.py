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
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel

from hf_mabprune.architectures import Site, architecture_of, projection_of
from hf_mabprune.architectures.sites import members
from hf_mabprune.arms import ArmTable
from hf_mabprune.effects.damping import damped
from hf_mabprune.effects.kfac import KfacFactors, kfac_factors
from hf_mabprune.effects.masking import StandIn
from hf_mabprune.effects.memory import Sizes
from hf_mabprune.effects.obs import increases
from hf_mabprune.effects.pulls.cost import Cost
from hf_mabprune.progress import over
from hf_mabprune.selection.plan import Floats, Ints
from hf_mabprune.surgery.biases import may_have_bias
from hf_mabprune.tasks.base import Task
from hf_mabprune.tasks.batch import Batch

DAMPING = 0.01  # ridge, relative to the mean of the diagonal of the second moments
MEMORY = 2**32  # bytes of second moments at a time
MOMENTS = 4  # matrices of a site while they are summed up


@dataclass(frozen=True)
class RefitCosts:
    """What is known of removals with refits before any pull.

    Attributes:
        along: [K], cost in nats of each arm as the last of its layer's that have gone, refitted.
        alone: [K], cost of each arm as the first.
        stand_ins: What comes in the place of each arm, by name of its site; experts have none.
        cost: What finding this out took.
    """

    along: Floats
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
    ) -> "RefitCosts":
        """Finds them out from one forward and a few backwards a batch, and O(C^3) a site.

        Sites go through the model in groups, as many at a time as their moments fit into memory.

        Args:
            model: Dense model, in evaluation mode.
            arms: All arms.
            task: Gives the logits that count.
            batches: Mini-batches of calibration data.
            seed: Seed of the label draws.
            damping: Ridge of the refits, relative to the mean of the diagonal of the second moments.
        """
        start = time.perf_counter()
        everything = architecture_of(model).sites(model)
        places = {site.name: site for site in everything}
        todo = [(places[name], rows, members(places[name], everything)) for name, rows in arms.groups()]
        along, alone = np.empty(len(arms)), np.empty(len(arms))
        stand_ins: dict[str, StandIn] = {}
        sweeps = passes = 0
        while todo:
            together = _together(todo)
            parts = list({part.name: part for *_, own in todo[:together] for part in own}.values())
            factors, passes = kfac_factors(model, task, batches, parts, seed)
            sweeps += 1
            for site, rows, own in over(todo[:together], "costs of removals", "sites"):
                if site.kind == "expert":
                    along[rows] = alone[rows] = [whole_cost(model, part, factors[part.name]) for part in own]
                else:
                    costs = _costs_at(model, arms, site, rows, factors[site.name], damping)
                    along[rows], alone[rows], stand_ins[site.name] = costs
            todo = todo[together:]
        tokens = sum(batch.tokens for batch in batches)
        seconds = time.perf_counter() - start
        return cls(along, alone, stand_ins, Cost(0, tokens * sweeps, tokens * passes * sweeps, seconds))


def in_outputs(model: PreTrainedModel, site: Site, kfac: KfacFactors) -> tuple[torch.Tensor, torch.Tensor]:
    """Gives V = root(G) W [D, C] and A [C, C] of a site, float64; A is centred where a bias may take up the means."""
    weight = kfac.root() @ projection_of(model, site).weight.detach().double()
    return weight, kfac.inputs.covariance() if may_have_bias(model, site) else kfac.inputs.second


def whole_cost(model: PreTrainedModel, site: Site, kfac: KfacFactors) -> float:
    """Gives 1/2 tr(V A V'), the cost in nats of a site that goes as a whole, with nothing in its place: an expert."""
    weight, second = in_outputs(model, site, kfac)
    return float((weight @ second * weight).sum()) / 2


def _together(todo: Sequence[tuple[Site, Ints, list[Site]]]) -> int:
    """Counts the sites that share a pass: as many as fit into `MEMORY`, at least one."""
    bytes_of = np.cumsum([8 * MOMENTS * sum(part.columns**2 for part in own) for *_, own in todo])
    return max(1, int(np.searchsorted(bytes_of, MEMORY, side="right")))


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
    along = increases(weight.cpu().numpy(), second.cpu().numpy(), size, len(rows), damping) / 2
    alone, matrix = _apart(weight, second, _spans(arms, site, rows), damping)
    mean = kfac.inputs.mean if may_have_bias(model, site) else torch.zeros_like(kfac.inputs.mean)
    return along, alone, StandIn(mean.to(model.dtype), matrix.to(model.dtype))


def _spans(arms: ArmTable, site: Site, rows: Ints) -> list[slice]:
    """Gives the columns S of each arm of a site."""
    return [slice(int(arms.start[row]) * site.unit_size, int(arms.stop[row]) * site.unit_size) for row in rows]


def _apart(
    weight: torch.Tensor, second: torch.Tensor, spans: Sequence[slice], damping: float
) -> tuple[Floats, torch.Tensor]:
    """Removes each arm of a site by itself, as `obs` does it first in its order.

    Args:
        weight: V, [D, C], in the metric of the outputs.
        second: A, [C, C].
        spans: Columns S of each arm.
        damping: As that of `RefitCosts.of`.

    Returns:
        Costs, 1/2 tr(V_S ([H^-1]_SS)^-1 V_S') for the columns S of each arm; and the matrix of `StandIn`,
        [H^-1]_:,S ([H^-1]_SS)^-1 side by side. The refit of W is dW = -W_S times that block transposed (see `obs`), so
        that W + dW on h, and W on h with the stand-in, are one and the same.
    """
    if not second.diagonal().any():  # nothing ever flows in
        return np.zeros(len(spans)), torch.zeros_like(second)
    eye = torch.eye(len(second), dtype=second.dtype, device=second.device)

    def remove(strength: float) -> tuple[Floats, torch.Tensor] | None:
        hessian = second + strength * eye
        if torch.linalg.cholesky_ex(hessian).info:
            return None
        inverse = torch.linalg.inv(hessian)
        matrix, costs = torch.empty_like(inverse), []
        for span in spans:
            own = inverse[span, span]
            matrix[:, span] = torch.linalg.solve(own, inverse[span]).T
            costs.append(float((torch.linalg.solve(own, weight[:, span].T) * weight[:, span].T).sum()) / 2)
        return (np.array(costs), matrix) if np.isfinite(costs).all() and matrix.isfinite().all() else None

    first = damping * second.diagonal().mean().clamp(min=torch.finfo(second.dtype).tiny)
    return damped(remove, float(first), float(second.abs().max()))


def memory(sizes: Sizes) -> tuple[int, int]:
    """Estimates bytes: of the second moments while costs are found, and of the stand-ins that are kept."""
    squares = sizes.squares
    moments = MOMENTS * max(min(MEMORY // MOMENTS, sum(squares)), max(squares))
    return moments, sizes.item * sum(squares) // 8
