"""What flows into the output projections: the statistics that criteria and compensation are made from.

Symbols: B examples, T tokens; C columns of a projection, F neurons or H * Dh; N positions seen, padding left out.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_mabprune.architectures import Site
from hf_mabprune.tasks.base import Batch, Task

See = Callable[[Site, torch.Tensor, torch.Tensor], None]  # site, its input [B, T, C], counted [B, T]


@dataclass(frozen=True)
class Moments:
    """First and second moments of the input h of one projection, over all positions that are not padding.

    Attributes:
        count: N.
        mean: [C] float64, E[h].
        second: [C, C] float64, E[h h'], not centred.
    """

    count: int
    mean: torch.Tensor
    second: torch.Tensor

    def covariance(self) -> torch.Tensor:
        """[C, C], E[h h'] - E[h] E[h]'."""
        return self.second - torch.outer(self.mean, self.mean)

    def variance(self) -> torch.Tensor:
        """[C], never negative."""
        return (self.second.diagonal() - self.mean.square()).clamp(min=0)


@torch.inference_mode()
def watch_inputs(
    model: PreTrainedModel, task: Task, batches: Iterable[Batch], sites: Sequence[Site], see: See
) -> None:
    """Runs a model and shows `see` the input of every site's output projection, batch by batch, as it appears.

    Masks that are on are seen; positions are flagged that are not padding.
    """
    for batch in batches:
        inputs = {name: tensor.to(model.device) for name, tensor in batch.items()}
        counted = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"]))
        counted = counted.reshape(-1, counted.shape[-1]).bool()
        with ExitStack() as hooks:
            for site in sites:

                def hook(_: nn.Module, arguments: Any, site: Site = site, counted: torch.Tensor = counted) -> None:
                    see(site, arguments[0], counted)

                projection = model.base_model.get_submodule(site.output)
                hooks.callback(projection.register_forward_pre_hook(hook).remove)
            task.readout(model, inputs)


def moments(model: PreTrainedModel, task: Task, batches: Iterable[Batch], sites: Sequence[Site]) -> dict[str, Moments]:
    """Moments of every site's input, by the path of its output projection; one forward pass a batch.

    Batches whose activations are not finite are left out, unless there are no others. Every process of a launch
    computes the same, so that nothing depends on how many there are. Memory: C * C float64 a site.
    """
    counts: dict[str, int] = {}
    sums: dict[str, torch.Tensor] = {}
    products: dict[str, torch.Tensor] = {}

    def see(site: Site, hidden: torch.Tensor, counted: torch.Tensor) -> None:
        rows = hidden[counted].float()
        path = site.output
        fine = bool(rows.isfinite().all())
        if not fine and path in counts:
            return
        if fine and not counts.get(path, 1):  # so far there was nothing but broken batches
            del sums[path], products[path]
        counts[path] = counts.get(path, 0) + len(rows) * fine
        sums[path] = sums.get(path, 0) + rows.sum(0, dtype=torch.float64)
        products[path] = products.get(path, 0) + (rows.T @ rows).double()

    watch_inputs(model, task, batches, sites, see)
    return {
        path: Moments(count, sums[path] / max(count, 1), products[path] / max(count, 1))
        for path, count in counts.items()
    }
