"""What flows into the output projections: the statistics that criteria and compensation are made from.

Symbols: B examples, T tokens; C columns of a projection, F neurons or H * Dh; N positions seen, padding left out.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from transformers import PreTrainedModel

from hf_mabprune.architectures import Site
from hf_mabprune.effects.taps import tapped
from hf_mabprune.progress import over
from hf_mabprune.tasks.base import Task
from hf_mabprune.tasks.batch import Batch

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
        """[C], E[h_j^2] - E[h_j]^2, never negative."""
        return (self.second.diagonal() - self.mean.square()).clamp(min=0)


@torch.inference_mode()
def watch_inputs(
    model: PreTrainedModel, task: Task, batches: Iterable[Batch], sites: Sequence[Site], see: See
) -> None:
    """Runs a model and shows `see` the input of every site's output projection, batch by batch, as it appears.

    What flows in with masks that are on is shown.

    Args:
        sites: Where to look; of neurons or heads.
        see: Called with a site, its input [B, T, C] and [B, T] bool, which positions are not padding. (For multiple
            choice B counts choices.)
    """
    for batch in over(batches, "inputs of projections"):
        inputs = batch.to(model.device)
        with tapped(model, {site.name: partial(_shown, site, inputs, see) for site in sites}):
            task.readout(model, inputs)


def _shown(site: Site, inputs: Batch, see: See, hidden: torch.Tensor) -> torch.Tensor:
    """A tap that shows what flows through it, and leaves it as it is."""
    see(site, hidden, inputs.counted(site.stack.flag, hidden))
    return hidden


def product_of(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Multiplies two matrices in float32, in float64 where that cannot hold the product; to be summed in float64."""
    product = (a.float() @ b.float()).double()
    return product if product.isfinite().all() else a.double() @ b.double()


def moments(model: PreTrainedModel, task: Task, batches: Iterable[Batch], sites: Sequence[Site]) -> dict[str, Moments]:
    """Takes moments of every site's input, by its name; one forward pass a batch.

    Batches whose activations are not finite are left out, unless there are no others. Every process of a launch
    computes the same, so that nothing depends on how many there are. Memory: C * C float64 a site.
    """
    counts: dict[str, int] = {}
    sums: dict[str, torch.Tensor] = {}
    products: dict[str, torch.Tensor] = {}

    def see(site: Site, hidden: torch.Tensor, counted: torch.Tensor) -> None:
        rows = hidden[counted].float()
        path = site.name
        finite = bool(rows.isfinite().all())
        if not finite and path in counts:
            return
        if finite and not counts.get(path, 1):  # so far there was nothing but broken batches
            del sums[path], products[path]
        counts[path] = counts.get(path, 0) + len(rows) * finite
        sums[path] = sums.get(path, 0) + rows.sum(0, dtype=torch.float64)
        products[path] = products.get(path, 0) + product_of(rows.T, rows)

    watch_inputs(model, task, batches, sites, see)
    return {
        path: Moments(count, sums[path] / max(count, 1), products[path] / max(count, 1))
        for path, count in counts.items()
    }
