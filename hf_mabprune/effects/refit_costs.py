"""Removals as they are once all that stays is refitted: the search that counts on the compensation after it.

A layer whose arms stand in for each other loses little when one goes, but masking does not show it: the stand-ins have
other weights until they are refitted. So three things are brought together:

- `along`, the cost of each arm in the order in which its layer's arms go, each removal followed by a refit of what
  stays (`elimination`), in the metric of the outputs (`kfac`). It sees sets, but takes positions as independent.
- pulls with stand-ins (`masking.StandIn`): the model itself, with one arm replaced by what the others of its layer
  predict of it. They see the outputs as they are, but one arm at a time; `alone` is what `along` would say of them.
- effects with stand-ins, from gradients (`estimates`): what pulls would say, to second order, for all arms at once.

The cost that removals go by is `along`, corrected by measured over predicted cost of the arm alone.
Symbols: K arms; C columns of a projection.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel

from hf_mabprune.architectures import Site, architecture_of, linear_at
from hf_mabprune.arms import ArmTable
from hf_mabprune.effects.interactions import Interactions
from hf_mabprune.effects.kfac import KfacFactors, kfac_factors
from hf_mabprune.effects.masking import StandIn
from hf_mabprune.effects.obs import increases
from hf_mabprune.effects.pulls.base import Cost
from hf_mabprune.selection.plan import Bools, Floats, Ints, Plan
from hf_mabprune.surgery.cut import may_have_bias
from hf_mabprune.tasks.base import Batch, Task

DAMPING = 0.01  # ridge, relative to the mean of the diagonal of the second moments
MEMORY = 2**32  # bytes of second moments at a time
MOMENTS = 4  # matrices of a site while they are summed up
LIMIT = 8.0  # largest correction of a cost, and its inverse the smallest


@dataclass(frozen=True)
class RefitCosts:
    """What is known of removals with refits before any pull.

    Attributes:
        along: [K], cost in nats of each arm as the last of its layer's that have gone, refitted.
        alone: [K], cost of each arm as the first.
        stand_ins: By the path of the projection.
        cost: Of finding this out.
    """

    along: Floats
    alone: Floats
    stand_ins: Mapping[str, StandIn]
    cost: Cost

    @classmethod
    def of(
        cls, model: PreTrainedModel, arms: ArmTable, task: Task, batches: Sequence[Batch], seed: int = 0
    ) -> "RefitCosts":
        """From one forward and a few backwards a batch, and O(C^3) a site."""
        start = time.perf_counter()
        places = {(site.kind, site.layer): site for site in architecture_of(model).sites(model)}
        sites = [(places[kind, layer], rows) for kind, layer, rows in arms.groups()]
        along, alone = np.empty(len(arms)), np.empty(len(arms))
        stand_ins: dict[str, StandIn] = {}
        found: dict[str, KfacFactors] = {}
        passed = 0
        for number, (site, rows) in enumerate(sites):
            if not found:  # so many sites share a pass as their moments fit into memory
                square = (site.units * site.unit_size) ** 2 * 8 * MOMENTS
                together = [each for each, _ in sites[number : number + max(1, MEMORY // square)]]
                found, passes = kfac_factors(model, task, batches, together, seed)
                passed += 1
            kfac = found.pop(site.output)
            weight, second = in_outputs(model, site, kfac)
            size = int(arms.units[rows].max()) * site.unit_size
            along[rows] = increases(weight.cpu().numpy(), second.cpu().numpy(), size, len(rows), DAMPING) / 2
            alone[rows], matrix = _apart(weight, second, _spans(arms, site, rows))
            mean = kfac.inputs.mean if may_have_bias(model, site) else torch.zeros_like(kfac.inputs.mean)
            stand_ins[site.output] = StandIn(mean.to(model.dtype), matrix.to(model.dtype))
        tokens = sum(batch["input_ids"].numel() for batch in batches)
        seconds = time.perf_counter() - start
        return cls(along, alone, stand_ins, Cost(0, tokens * passed, tokens * passes * passed, seconds))

    def informed(self, effects: Interactions) -> "Refitted":
        """With the effects of the arms, stand-ins in their places."""
        shared = {name: getattr(effects, name) for name in ("effects", "slopes", "batch", "examples")}
        return Refitted(**shared, along=self.along, alone=self.alone)


@dataclass(frozen=True)
class Refitted(Interactions):
    """Effects with stand-ins, and what is known of removals one after the other.

    Attributes:
        along, alone: As those of `RefitCosts`.
    """

    along: Floats
    alone: Floats

    def remove(
        self, plan: Plan, rewards: Floats, kept: Bools, start: float, progress: float, steps: int = 1
    ) -> tuple[Bools, Ints, Floats]:
        """As that of `Interactions`, with rewards measured with stand-ins."""
        scores = -self.along * self._correction(rewards)
        kept, gone = plan.choose(scores, kept, progress)
        return kept, gone, scores

    def candidates(self, rewards: Floats) -> list[Floats]:
        """[K] each: scores that trust the correction wholly, by half and not at all, by pulls and by effects."""
        corrections = [self._correction(known) for known in (rewards, self.rewards())]
        powers = [correction**trust for trust in (1.0, 0.5) for correction in corrections]
        return [-self.along * power for power in (*powers, np.ones_like(self.along))]

    def _correction(self, rewards: Floats) -> Floats:
        """[K], measured over predicted cost."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.nan_to_num(-rewards / self.alone, nan=1.0).clip(1 / LIMIT, LIMIT)


def in_outputs(model: PreTrainedModel, site: Site, kfac: KfacFactors) -> tuple[torch.Tensor, torch.Tensor]:
    """root(G) W [D, C] and A [C, C] of a site, float64; A is centred where a bias may take up the means."""
    weight = kfac.root() @ linear_at(model, site.output).weight.detach().double()
    return weight, kfac.inputs.covariance() if may_have_bias(model, site) else kfac.inputs.second


def _spans(arms: ArmTable, site: Site, rows: Ints) -> list[slice]:
    """Columns of each arm of a site."""
    return [slice(int(arms.start[row]) * site.unit_size, int(arms.stop[row]) * site.unit_size) for row in rows]


def _apart(weight: torch.Tensor, second: torch.Tensor, spans: Sequence[slice]) -> tuple[Floats, torch.Tensor]:
    """Each arm of a site by itself.

    Args:
        weight: [D, C] in the metric of the outputs.
        second: [C, C].

    Returns:
        Costs, 1/2 tr(W_S ([H^-1]_SS)^-1 W_S') for the columns S of each arm; and the matrix of `StandIn`,
        [H^-1]_:S ([H^-1]_SS)^-1 side by side.
    """
    ridge = DAMPING * second.diagonal().mean().clamp(min=torch.finfo(second.dtype).tiny)
    inverse = torch.linalg.inv(second + ridge * torch.eye(len(second), dtype=second.dtype, device=second.device))
    matrix, costs = torch.empty_like(inverse), []
    for span in spans:
        own = inverse[span, span]
        matrix[:, span] = torch.linalg.solve(own, inverse[span]).T
        costs.append(float((torch.linalg.solve(own, weight[:, span].T) * weight[:, span].T).sum()) / 2)
    return np.array(costs), matrix
