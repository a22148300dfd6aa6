"""The dense model and a pruned one, layer by layer on the same batches: what flows into a site in both of them.

Symbols: N positions seen; C columns of a projection of the dense model, S that stay.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress

import torch
from transformers import PreTrainedModel

from hf_mabprune.architectures import Site, architecture_of
from hf_mabprune.architectures.sites import members
from hf_mabprune.compensation.finished_layers import FinishedLayers, Seen
from hf_mabprune.effects.activations import watch_inputs
from hf_mabprune.effects.pulls.cost import Cost
from hf_mabprune.progress import over
from hf_mabprune.tasks.base import Task
from hf_mabprune.tasks.batch import Batch


class SideBySide:
    """Goes up two models together, a layer at a time over all batches, and holds the hidden states between layers.

    Memory: what a layer gives on all batches, of both models.

    Args:
        dense, small: The dense model and the pruned one.
        task: Runs a model on a batch.
        batches: The batches.
    """

    def __init__(self, dense: PreTrainedModel, small: PreTrainedModel, task: Task, batches: Sequence[Batch]) -> None:
        self.task, self.batches = task, batches
        self.finished = [FinishedLayers(model, task, batches) for model in (dense, small)]

    def raise_to(self, count: int) -> Cost:
        """Finishes the first `count` layers of both, which will not change any more, and says the cost."""
        return sum((finished.raise_to(count) for finished in self.finished), Cost())

    def inputs(self, site: Site) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Gives what flows into a site's projection in the dense model, [N, C], and in the pruned one, [N, S]."""
        dense, small = self.finished
        for number, batch in enumerate(over(self.batches, "inputs and outputs")):
            with dense.skipped(number):
                hidden = input_of(dense.model, self.task, batch, site.name)
            with small.skipped(number):
                yield hidden, input_of(small.model, self.task, batch, site.name)

    def cost_of_a_layer(self) -> Cost:
        """Says what one layer of both models costs on all batches."""
        tokens = sum(batch.tokens for batch in self.batches)
        return Cost(forward_tokens=2 * tokens / len(self.finished[0].layers))


def input_of(model: PreTrainedModel, task: Task, batch: Batch, name: str) -> torch.Tensor:
    """[N, columns] float32, what flows into a site's projection (into those of all experts, side by side, behind a
    router), padding left out."""
    sites = architecture_of(model).sites(model)
    parts = members(next(site for site in sites if site.name == name), sites)
    found: list[torch.Tensor] = []

    def see(_: Site, hidden: torch.Tensor, counted: torch.Tensor) -> None:
        found.append(hidden[counted].float())
        if len(found) == len(parts):
            raise Seen

    with suppress(Seen):
        watch_inputs(model, task, [batch], parts, see)
    return torch.cat(found, 1)
