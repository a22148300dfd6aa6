"""Routes: where routers send positions, and how much what comes of it counts.

Symbols: N positions, examples side by side; k experts that a position is sent to; D hidden.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_mabprune.architectures import Site
from hf_mabprune.architectures.sites import part_at


@dataclass(frozen=True)
class Route:
    """What a router said in one forward pass.

    Attributes:
        weights: [N, k], what the outputs of the experts are multiplied by.
        chosen: [N, k], their numbers.
        biases: [E, D], of their output projections; None where they have none.
    """

    weights: torch.Tensor
    chosen: torch.Tensor
    biases: torch.Tensor | None

    def weight_of(self, expert: int) -> torch.Tensor:
        """[N], what the output of one expert is multiplied by: 0 where it is not asked."""
        return (self.weights * (self.chosen == expert)).sum(-1)

    def from_biases(self) -> torch.Tensor | float:
        """[N, D] float32, what the biases b of the experts add to the sum of their outputs, sum_e g_e b_e."""
        if self.biases is None:
            return 0.0
        return (self.weights.float().unsqueeze(-1) * self.biases[self.chosen].float()).sum(1)


@contextmanager
def routes(model: PreTrainedModel, routers: Sequence[Site]) -> Iterator[Mapping[str, Route]]:
    """Gives what each router said in the forward pass under way, by its name, while the context is open."""
    found: dict[str, Route] = {}

    def take(name: str, experts: Any, _: nn.Module, __: Any, output: Any) -> None:
        _, weights, chosen = output
        found[name] = Route(weights, chosen, experts.down_proj_bias if experts.has_bias else None)

    with ExitStack() as hooks:
        for site in routers:
            experts = part_at(model.base_model, f"{site.prefix}{site.spec.experts}")
            router = model.base_model.get_submodule(site.name)
            hooks.callback(router.register_forward_hook(partial(take, site.name, experts)).remove)
        yield found
