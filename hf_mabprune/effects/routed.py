"""What is sent to experts, and what comes of it: how much an expert adds where it is asked."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from hf_mabprune.architectures import Site, architecture_of, projection_of
from hf_mabprune.architectures.sites import members
from hf_mabprune.effects.activations import watch_inputs
from hf_mabprune.effects.routes import routes
from hf_mabprune.tasks.base import Task
from hf_mabprune.tasks.batch import Batch


@dataclass
class Routed:
    """What a router sends to an expert, and what comes of it.

    Attributes:
        all_positions: Positions that the router has seen.
        positions: Those that it sends to the expert.
        norms: Sum over them of |g f|, f what the expert gives and g what the router multiplies it by.
    """

    all_positions: int = 0
    positions: int = 0
    norms: float = 0.0

    @property
    def added(self) -> float:
        """Mean of |g f| over the positions sent to it; 0 where there are none."""
        return self.norms / max(self.positions, 1)


def sent_to_experts(
    model: PreTrainedModel, task: Task, batches: Sequence[Batch], asked: Sequence[Site]
) -> dict[str, Routed]:
    """Finds what is sent to every expert of some sites, by the name of its own site; one forward pass a batch.

    Args:
        model: Dense model, in evaluation mode.
        task: Says which positions count.
        batches: Mini-batches of calibration data.
        asked: Sites of whole experts.
    """
    everything = architecture_of(model).sites(model)
    routers = {site.inside + str(site.spec.experts): site for site in asked}
    parts = [part for site in routers.values() for part in members(site, everything)]
    weights = {part.name: projection_of(model, part).weight.detach() for part in parts}
    found = {part.name: Routed() for part in parts}

    def see(site: Site, hidden: torch.Tensor, counted: torch.Tensor) -> None:
        own, number, route = found[site.name], site.expert or 0, said[routers[str(site.tie)].name]
        sent = counted & (route.chosen == number).any(-1).view_as(counted)
        made = hidden[sent] @ weights[site.name].T  # g W h, see `effects.taps`
        if route.biases is not None:
            made = made + route.weight_of(number).view_as(counted)[sent].unsqueeze(-1) * route.biases[number]
        own.all_positions += int(counted.sum())
        own.positions += int(sent.sum())
        own.norms += float(torch.linalg.vector_norm(made.double(), dim=-1).sum())

    with routes(model, list(routers.values())) as said:
        watch_inputs(model, task, batches, parts, see)
    return found
