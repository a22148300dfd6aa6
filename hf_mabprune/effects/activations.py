"""What flows into the output projections: the statistics that criteria and compensation are made from.

Symbols: B examples, T tokens; C columns of a projection, F neurons or H * Dh; N positions seen, padding left out.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch.nn.functional import cosine_similarity
from transformers import PreTrainedModel

from hf_mabprune.architectures import Site, architecture_of
from hf_mabprune.checkpoints.weight_files import largest
from hf_mabprune.effects.finished_layers import Run, runs
from hf_mabprune.effects.taps import Tap, tapped
from hf_mabprune.tasks.base import Task
from hf_mabprune.tasks.batch import Batch

WIDE, BLOCKS = 256, 4  # columns from which a symmetric product is made in so many blocks of columns


class Weights(Protocol):
    """Weights of the positions of a batch (see `position_weights`)."""

    def at(self, site: Site, batch: Batch) -> torch.Tensor | float:
        """Gives those that count at a site, [N, 1], or one number for all."""


See = Callable[[Site, torch.Tensor, torch.Tensor], None]  # site, its input [B, T, C], counted [B, T]


@dataclass(frozen=True)
class Moments:
    """First and second moments of the input h of one projection, over all positions that are not padding.

    Attributes:
        count: N.
        mean: [C] float64, E[h].
        second: [C, C] float32, E[h h'], not centred; float64 where float32 cannot hold it, and of a model in float64.
    """

    count: int
    mean: torch.Tensor
    second: torch.Tensor

    def covariance(self) -> torch.Tensor:
        """[C, C] float64, E[h h'] - E[h] E[h]'."""
        return self.second.to(torch.float64, copy=True).addr_(self.mean, self.mean, alpha=-1)

    def variance(self) -> torch.Tensor:
        """[C], E[h_j^2] - E[h_j]^2, never negative."""
        return (self.second.diagonal().double() - self.mean.square()).clamp(min=0)


@torch.inference_mode()
def watch_inputs(
    model: PreTrainedModel, task: Task, batches: Sequence[Batch], sites: Sequence[Site], see: See
) -> None:
    """Runs a model and shows `see` the input of every site's output projection, of one batch after the other.

    What flows in with masks that are on is shown.

    Args:
        sites: Where to look; of neurons or heads.
        see: Called with a site, its input [B, T, C] and [B, T] bool, which positions are not padding. (For multiple
            choice B counts choices.)
    """
    for run in runs(model, task, batches, "inputs of projections"):
        _watch(model, run, sites, see)


def _watch(model: PreTrainedModel, run: Run, sites: Sequence[Site], see: See) -> None:
    _, inputs, go = run
    with tapped(model, beside_experts(model, {site.name: partial(_shown, site, inputs, see) for site in sites})):
        go()


def beside_experts(model: PreTrainedModel, taps: Mapping[str, Tap]) -> dict[str, Tap]:
    """Adds taps to all experts that have none, which change nothing: so that experts run one after the other, and
    round alike, whichever sites are looked at together."""
    architecture = architecture_of(model)
    if not any(spec.experts for stack in architecture.stacks for spec in stack.sites):
        return dict(taps)
    experts = (site.name for site in architecture.sites(model) if site.expert is not None)
    return {**dict.fromkeys(experts, lambda hidden: hidden), **taps}


def _shown(site: Site, inputs: Batch, see: See, hidden: torch.Tensor) -> torch.Tensor:
    """A tap that shows what flows through it, and leaves it as it is."""
    see(site, hidden, inputs.counted(site.stack.flag, hidden))
    return hidden


def add_products(total: torch.Tensor | None, weighted: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Adds weighted' rows, [C, C], to a sum, in place; in float32, unless that cannot hold it.

    Args:
        total: Sum so far, which is used up; None where there is none.
        weighted: [N, C], the rows, each times its weight; so the product is symmetric.
        rows: [N, C].
    """
    if not weighted.dtype == rows.dtype == torch.float64:
        weighted, rows = weighted.float(), rows.float()
    product = _symmetric(weighted, rows)
    if not largest(product) < float("inf"):
        product = _symmetric(weighted.double(), rows.double())
    if total is None:
        return product
    if product.dtype != total.dtype or largest(total) + largest(product) > torch.finfo(total.dtype).max:
        total = total.double()
    return total.add_(product)


def _symmetric(weighted: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Multiplies weighted' rows; on a CPU without most of what is below the diagonal, which is what is above it."""
    columns = rows.shape[1]
    size = -(-columns // BLOCKS) if rows.device.type == "cpu" and columns >= WIDE else columns
    product = rows.new_empty(columns, columns)
    for start in range(0, columns, size or 1):
        own, after = slice(start, start + size), slice(start + size, None)
        torch.mm(weighted[:, own].T, rows[:, start:], out=product[own, start:])
        product[after, own] = product[own, after].T
    return product


def in_statistics(values: torch.Tensor) -> torch.Tensor:
    """Gives values in the precision that statistics are formed in: float32, float64 where they come in it."""
    return values if values.dtype == torch.float64 else values.float()


def bytes_of(model: PreTrainedModel, site: Site) -> int:
    """Counts the bytes of a site's second moments."""
    return in_statistics(torch.empty(0, dtype=model.dtype)).itemsize * site.columns**2


@torch.inference_mode()
def mean_cosines(
    model: PreTrainedModel, task: Task, batches: Sequence[Batch], layers: Sequence[Site]
) -> dict[str, float]:
    """Takes the mean cosine of what layers are given and what they give, by their names; one forward pass a batch.

    Args:
        layers: Where to look, each a site of its own. Positions of padding are left out.
    """
    sums = {site.name: torch.zeros(2, dtype=torch.float64) for site in layers}

    def see(site: Site, batch: Batch, module: Any, given: Any, named: Any, made: Any) -> None:
        states, first = given[0] if given else named["hidden_states"], made[0] if isinstance(made, tuple) else made
        counted = batch.counted(site.stack.flag, states)
        cosine = cosine_similarity(states[counted].double(), first[counted].double(), dim=-1)
        sums[site.name] += torch.stack([cosine.sum(), torch.ones_like(cosine).sum()]).cpu()

    for _, inputs, go in runs(model, task, batches, "inputs and outputs of layers"):
        with ExitStack() as stack:
            for site in layers:
                module = model.base_model.get_submodule(site.name)
                hook = module.register_forward_hook(partial(see, site, inputs), with_kwargs=True)
                stack.callback(hook.remove)
            go()
    return {name: float(total / count) for name, (total, count) in sums.items()}


@torch.inference_mode()
def moments(
    model: PreTrainedModel,
    task: Task,
    batches: Sequence[Batch],
    sites: Sequence[Site],
    weights: Sequence[Weights] = (),
) -> dict[str, Moments]:
    """Takes moments of every site's input, by its name; one forward pass a batch.

    Batches whose activations are not finite are left out, unless there are no others. Every process of a launch
    computes the same, so that nothing depends on how many there are. Memory: C * C float32 a site, once more for one.

    Args:
        weights: Of the positions of each batch; without, all count alike.
    """
    counts: dict[str, int] = {}
    sums: dict[str, torch.Tensor] = {}
    products: dict[str, torch.Tensor] = {}

    def see(batch: Batch, own: Weights | None, site: Site, hidden: torch.Tensor, counted: torch.Tensor) -> None:
        rows = in_statistics(hidden[counted])
        path = site.name
        finite = bool(rows.isfinite().all())
        if not finite and path in counts:
            return
        if finite and not counts.get(path, 1):  # so far there was nothing but broken batches
            del sums[path], products[path]
        counts[path] = counts.get(path, 0) + len(rows) * finite
        weighted = rows if own is None else rows * own.at(site, batch)
        sums[path] = sums.get(path, 0) + weighted.sum(0, dtype=torch.float64)
        products[path] = add_products(products.get(path), weighted, rows)

    for run in runs(model, task, batches, "inputs of projections"):
        number = run[0]
        _watch(model, run, sites, partial(see, batches[number], weights[number] if weights else None))
    return {
        path: Moments(count, sums[path] / max(count, 1), products[path].div_(max(count, 1)))
        for path, count in counts.items()
    }
