"""Kronecker factors of the KL divergence at the output projections: what a change of their weights costs the outputs.

A projection y = W h + b whose weights change by dW moves the coordinates u of the outputs (`Readout.coordinates`, in
which the divergence is half a squared distance, KL ~ 1/2 |u|^2) by sum_t g_t' dW h_t, g_t = du/dy_t over positions t.
Squared and averaged that is a quadratic form in all D * C weights, the Gauss-Newton matrix of the KL divergence, far
too large to write down. K-FAC (Martens & Grosse 2015, arXiv 1503.05671, section 3) takes positions as independent, and
g of h given the weight of a position, so that the form falls into two factors:

    KL ~ 1/2 tr(G dW A dW'),   G = 1/N sum_t g_t g_t'  [D, D],   A = sum_t w_t h_t h_t'  [C, C],   w_t ~ |g_t|^2.

A is weighted, unlike that of the source, because positions differ: E[|g|^2 h h'] / E[|g|^2] is what h h' is where it
matters, and a position that the outputs do not read, g = 0, counts nothing. Independence of g and h without the weight
would have it count like all others. G stays the plain sum, so that tr(G) A = sum_t |g_t|^2 h_t h_t' / N holds exactly.

No labels are read: u is a distance from the model's own outputs, not a loss (Gauss-Newton, not empirical Fisher).
Symbols: N examples; B, T of a batch; n positions that are not padding; D outputs and C inputs of a projection.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_mabprune.architectures import Site, projection_of
from hf_mabprune.effects import activations
from hf_mabprune.effects.activations import Moments, add_products, beside_experts, in_statistics
from hf_mabprune.effects.broken import cause
from hf_mabprune.effects.gradients import frozen, slopes_of
from hf_mabprune.effects.taps import tapped
from hf_mabprune.progress import over
from hf_mabprune.tasks.base import Task
from hf_mabprune.tasks.batch import Batch
from hf_mabprune.tasks.readout import Readout

# Share of the weights w_t that follows |g_t|^2; the rest is even. Where a classifier reads one position, |g|^2 of the
# last layer is zero at all others: examples would be all that A is made of, often fewer than its C columns, and what a
# refit then does to the other inputs would be free.
READ = 0.9
LARGE = 1e30  # factor that float32 may not hold
SAMPLES = 2  # label draws where outputs are many


@dataclass(frozen=True)
class KfacFactors:
    """Kronecker factors at one projection.

    Attributes:
        inputs: Mean and second moment of h over positions, weighted: A is `inputs.second`.
        outputs: G, [D, D], in the precision of `inputs.second`.
    """

    inputs: Moments
    outputs: torch.Tensor

    def root(self) -> torch.Tensor:
        """[D, D] float64, the symmetric root R of G = R R: KL ~ 1/2 E_w|R dW h|^2, least squares as of layers."""
        values, vectors = torch.linalg.eigh(self.outputs.double())
        return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def kfac_factors(
    model: PreTrainedModel, task: Task, batches: Sequence[Batch], sites: Sequence[Site], seed: int = 0
) -> tuple[dict[str, KfacFactors], int]:
    """Takes the factors of every site, by its name; one forward and a few backwards a batch.

    Masks that are on are seen. Every process of a launch computes the same, so that nothing depends on how many there
    are. The model is neither changed nor given gradients. Memory: `bytes_of` a site.

    Args:
        model: Model in evaluation mode.
        sites: Where factors are wanted; of neurons or heads.
        seed: Seed of the label draws.

    Returns:
        The factors, and the backward passes that a batch took. Batches whose outputs are not finite are left out.

    Raises:
        ValueError: If no batch has finite outputs.
    """
    sums: dict[str, _Sums] = {}
    counts = dict.fromkeys((site.name for site in sites), 0)
    examples, passes = 0, 0
    for number, batch in enumerate(over(batches, "curvature of the outputs")):
        passes, found = _add_batch(model, task, batch.to(model.device), sites, seed + number, sums, counts)
        examples += found
    if not sums:
        raise ValueError(f"no calibration batch has finite outputs and gradients: {cause(model, task, batches)}")
    return {path: sums.pop(path).factors(counts[path], examples) for path in list(sums)}, passes


def _add_batch(
    model: PreTrainedModel,
    task: Task,
    inputs: Batch,
    sites: Sequence[Site],
    seed: int,
    sums: dict[str, "_Sums"],
    counts: dict[str, int],
) -> tuple[int, int]:
    """Adds a batch to sums and counts of positions; what its pass has kept is gone before that of the next begins.

    Returns:
        Backward passes, and the examples that were added: none of a batch that is broken, which tells nothing.
    """
    with frozen(model), torch.enable_grad(), watched(model, sites) as seen:
        readout = task.readout(model, inputs)
        outputs = seen.outputs
        # The gradient of the sum over examples is that of each: no example bears on another's.
        gradients = [slopes_of(coordinate, outputs) for coordinate in coordinates_of(readout, seed)]
    if not all(bool(tensor.isfinite().all()) for tensor in (readout.outputs, *chain.from_iterable(gradients))):
        return len(gradients), 0
    for site in sites:
        for hidden, run in seen.runs(site):
            counted = inputs.counted(site.stack.flag, hidden)
            if site.expert is not None:
                counted = counted & (hidden != 0).any(-1)  # the router sends it other positions
            rows = in_statistics(hidden.detach()[counted])
            found = torch.stack([grads[run].view(*hidden.shape[:2], -1)[counted] for grads in gradients])
            counts[site.name] += len(rows)
            sums.setdefault(site.name, _Sums()).add(rows, found)
    return len(gradients), inputs.examples


@torch.no_grad()
def backward_passes(readout: Readout, samples: int = SAMPLES) -> int:
    """Counts the backward passes a batch where outputs are such as these, one a coordinate; those of `kfac_factors`,
    where nobody says how many labels are drawn."""
    return sum(1 for _ in readout.coordinates(readout, samples, 0))


def bytes_of(model: PreTrainedModel, site: Site) -> int:
    """Counts the bytes of a site while its factors are taken: two matrices of its inputs and one of its outputs."""
    outputs = len(projection_of(model, site).parts[0])
    return 2 * activations.bytes_of(model, site) + 8 * outputs**2


@dataclass
class _Sums:
    """Sums over positions at one site: |g|^2, |g|^2 h, |g|^2 h h', h, h h' and g g'; vectors in float64."""

    weight: torch.Tensor | float = 0.0
    read: torch.Tensor | float = 0.0
    read_second: torch.Tensor | None = None
    plain: torch.Tensor | float = 0.0
    plain_second: torch.Tensor | None = None
    outputs: torch.Tensor | None = None

    def add(self, rows: torch.Tensor, gradients: torch.Tensor) -> None:
        """Adds the positions of a batch.

        Args:
            rows: [n, C], h.
            gradients: [coordinates, n, D], g, one row for each coordinate u_d: |u|^2 adds their squares up.
        """
        weights = gradients.square().sum((0, 2)).double()  # [n], |g|^2
        if not weights.isfinite().all():  # float32 cannot hold them
            weights = gradients.double().square().sum((0, 2))
        weighted, flat = rows.double() * weights.unsqueeze(1), gradients.flatten(0, 1)
        self.weight = self.weight + weights.sum()
        self.read = self.read + weighted.sum(0)
        self.plain = self.plain + rows.sum(0).double()
        self.read_second = add_products(self.read_second, weighted, rows)
        self.plain_second = add_products(self.plain_second, rows, rows)
        self.outputs = add_products(self.outputs, flat, flat)

    def factors(self, count: int, examples: int) -> KfacFactors:
        """Makes A and G; the sums are used up.

        Args:
            count: Positions that were summed over.
            examples: N.
        """
        assert self.read_second is not None and self.plain_second is not None and self.outputs is not None
        total, count = torch.as_tensor(self.weight), max(count, 1)  # an expert may get no position
        share = READ if total > 0 else 0.0
        total = total.clamp(min=torch.finfo(total.dtype).tiny)
        mean = share * self.read / total + (1 - share) * self.plain / count
        factor = share / float(total)
        wide = factor > LARGE or self.plain_second.dtype == torch.float64
        second = (self.read_second.double() if wide else self.read_second).mul_(factor)
        second.add_(self.plain_second, alpha=(1 - share) / count)
        return KfacFactors(Moments(count, torch.as_tensor(mean), second), self.outputs.div_(examples))


@dataclass
class _Seen:
    """What flowed through projections in one forward pass.

    A module that did not run is not there; one that runs several times is there as often.

    Attributes:
        inputs: Each h [B, T, C], by name of the site.
        outputs: Each output of a module, as it gave it, with gradients; experts of a layer share one, the sum of
            theirs.
        places: Numbers of the outputs of a module.
        modules: Module whose output is that of a site, by name of the site.
    """

    inputs: dict[str, list[torch.Tensor]]
    outputs: list[torch.Tensor]
    places: dict[nn.Module, list[int]]
    modules: dict[str, nn.Module]

    def runs(self, site: Site) -> Iterator[tuple[torch.Tensor, int]]:
        """Gives the input of each run of a site, and the number of its output."""
        return zip(self.inputs.get(site.name, ()), self.places.get(self.modules[site.name], ()), strict=True)


@contextmanager
def watched(model: PreTrainedModel, sites: Sequence[Site]) -> Iterator[_Seen]:
    """Shows input and output of each site's projection, as they appear."""
    modules = {site.name: model.base_model.get_submodule(site.tie or site.name) for site in sites}
    seen = _Seen({}, [], {}, modules)

    def show(name: str, hidden: torch.Tensor) -> torch.Tensor:
        seen.inputs.setdefault(name, []).append(hidden)
        return hidden

    def hook(module: nn.Module, arguments: Any, output: torch.Tensor) -> torch.Tensor:
        # No parameter takes gradients, so those of the first site begin at its own output.
        output = output if output.requires_grad else output.detach().requires_grad_()
        seen.places.setdefault(module, []).append(len(seen.outputs))
        seen.outputs.append(output)
        return output

    taps = beside_experts(model, {site.name: partial(show, site.name) for site in sites})
    with tapped(model, taps), ExitStack() as hooks:
        for module in dict.fromkeys(modules.values()):
            hooks.callback(module.register_forward_hook(hook).remove)
        yield seen


def coordinates_of(readout: Readout, seed: int, samples: int = SAMPLES) -> Iterator[torch.Tensor]:
    """Gives the coordinates u, [B] each, measured from where the model is now: all zero, but with slopes."""
    return readout.coordinates(replace(readout, outputs=readout.outputs.detach()), samples, seed)
