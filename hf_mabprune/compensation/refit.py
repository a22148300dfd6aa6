"""Refits the output projections of a pruned model to give what the dense one gave, site by site.

A projection y = W h + b of the dense model, h its C inputs, is left by surgery with W_S and x = h_S, the S inputs that
stay. A method (`Compensation.fit`) gives the W' that brings W' x near y on calibration data. Where there may be a bias
it takes up the means, b' = E[y] - W' E[x], so that W' is fitted to covariances; else to moments about zero.

The guard begins with all refits and takes back, in the order of the forward pass, each without which the KL divergence
of the outputs from the dense model's is lower on held-out calibration data: least squares at one site can harm the
output, most of all where much has gone. Refits help each other, so that to add them one by one would refuse too many.
Symbols: C inputs of a projection, S that stay; D outputs; N positions seen.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from transformers import PreTrainedModel

from hf_mabprune.architectures import Projection, Site, architecture_of, projection_of
from hf_mabprune.architectures.projections import spread
from hf_mabprune.architectures.sites import columns_behind, members
from hf_mabprune.arms import KeepIndices
from hf_mabprune.compensation.base import Compensation, Refused, Regression
from hf_mabprune.compensation.dense_reference import DenseReference
from hf_mabprune.compensation.input_side import InputSide
from hf_mabprune.compensation.refit_cache import RefitCache, Values
from hf_mabprune.compensation.side_by_side import SideBySide
from hf_mabprune.effects.finished_layers import FinishedLayers
from hf_mabprune.effects.memory import Sizes
from hf_mabprune.effects.pulls.cost import Cost
from hf_mabprune.progress import over
from hf_mabprune.runtime.hashes import sha256_by_name
from hf_mabprune.surgery.biases import declare_biases, may_have_bias

LOWER = "held-out KL divergence is lower without"
UNKNOWN = "held-out KL divergence is not finite with it, nor without"
Below = dict[bool, SideBySide]  # whether on held-out data -> both models; empty where refits see the dense one alone
BOTH_MODELS = 1.5  # passes of the dense model that one of it and of the pruned one take
MATRICES = 5  # of the size of float32 moments, that a refit forms
MOST_COLUMNS = 2**14  # that are refitted at once, 2 GiB of moments


@dataclass(frozen=True)
class SiteFigures:
    """What became of one site.

    Attributes:
        site, kind, layer: As name, kind and layer of the site.
        refitted: Whether it has new weights.
        error_before, error_after: Mean squared distance of the site's output from the dense model's, on held-out
            data, over that output's variance; after is that of the weights it ended with.
        reason: Why the site was left alone; empty where it was not.
    """

    site: str
    kind: str
    layer: int
    refitted: bool
    error_before: float
    error_after: float
    reason: str = ""


@dataclass(frozen=True)
class CompensationFigures:
    """What a compensation did, and what it cost.

    Attributes:
        sites: One entry for each site that was cut, in the order of the forward pass.
        kl_before, kl_after: Mean KL divergence of the outputs from the dense model's, on held-out data, in nats.
        parameters: Number of those that new biases added.
        seconds: Wall-clock time of the whole compensation; what several selections share counts where it was made.
        forward_tokens: Tokens, padding included, that passed through the dense or the pruned model; a part of its
            layers counts as that part.
        changed: Names of the weights that are not as surgery left them, in the model's state dict.
    """

    sites: list[SiteFigures]
    kl_before: float
    kl_after: float
    parameters: int
    seconds: float
    forward_tokens: int
    changed: list[str] = field(default_factory=list)

    def after(self, earlier: "CompensationFigures | None") -> "CompensationFigures":
        """Adds what an earlier compensation of the same model cost, where there was one."""
        if earlier is None:
            return self
        tokens = earlier.forward_tokens + self.forward_tokens
        return replace(self, seconds=earlier.seconds + self.seconds, forward_tokens=tokens)


@torch.no_grad()
def compensate(
    method: Compensation, reference: DenseReference, small: PreTrainedModel, keep: KeepIndices
) -> CompensationFigures:
    """Refits the cut output projections of a pruned model, in place, its config with them where a bias appears.

    Args:
        method: How a site is refitted, from `make_compensation`.
        reference: The dense model and its data.
        small: Pruned model, from `cut(reference.model, keep, ...)`.
        keep: Unit indices that stayed.

    Returns:
        What was done at each site that was cut, in the order of the forward pass.
    """
    started, spent = time.monotonic(), reference.cost
    parameters, cut = small.num_parameters(), sha256_by_name(small)
    kl_before, sites = reference.divergence(small), _cut_sites(reference.model, keep)
    below = _side_by_side(method, reference, small)
    refits = [_Refit(method, reference, small, site, keep, below) for site in over(sites, "refits", "sites")]
    kl = reference.divergence(small)
    if method.guard:
        kl = _guard(reference, small, refits, kl_before, kl)
    declare_biases(small, [refit.site for refit in refits if refit.gave_bias()])
    figures = [refit.figures() for refit in over(refits, "errors", "sites")]
    reference.cost = sum((side.cost for side in below.values()), reference.cost)
    return CompensationFigures(
        sites=figures,
        kl_before=kl_before,
        kl_after=kl,
        parameters=small.num_parameters() - parameters,
        seconds=time.monotonic() - started,
        forward_tokens=round((reference.cost - spent).forward_tokens),
        changed=[name for name, digest in sha256_by_name(small).items() if cut.get(name) != digest],
    )


@torch.no_grad()
def refit_all(
    method: Compensation,
    reference: DenseReference,
    small: PreTrainedModel,
    keep: KeepIndices,
    cache: RefitCache,
) -> None:
    """Refits every site to the dense model's activations, without a guard, and without a config that says where biases
    came: quick, for sets that are compared.

    Args:
        method, reference, small, keep: As those of `compensate`.
        cache: Refits of earlier calls with this method and reference; new ones are added.
    """
    for site in over(_cut_sites(reference.model, keep), "refits", "sites"):
        _Refit(method, reference, small, site, keep, {}, cache)


def _side_by_side(method: Compensation, reference: DenseReference, small: PreTrainedModel) -> Below:
    """Readies both models to be gone up, on the data that refits are made from and on held-out data; where layers run
    several times there is no going up."""
    if not method.bottom_up or architecture_of(reference.model).shares_layers(reference.model):
        return {}
    batches = {False: reference.batches, True: reference.held_out}
    return {key: SideBySide(reference.model, small, reference.task, found) for key, found in batches.items()}


def _guard(
    reference: DenseReference, small: PreTrainedModel, refits: Sequence["_Refit"], kl_before: float, kl: float
) -> float:
    """Takes back the refits without which the held-out divergence is lower; all, if it is lowest with none.

    Args:
        refits: All that were made, in the order of the forward pass, which therefore need not run again below the one
            that is judged.
        kl_before: Held-out divergence without refits, in nats.
        kl: Held-out divergence with all of them.

    Returns:
        The divergence now.
    """
    finished = FinishedLayers(small, reference.task, reference.held_out)
    for refit in over(refits, "guard", "sites"):
        if refit.reason:
            continue
        reference.cost += Cost(forward_tokens=finished.raise_to(refit.site.depth))
        values = refit.values()
        refit.take_back()
        kl_without = reference.divergence(small, kl, finished)
        if kl_without < kl or not np.isfinite(kl):
            kl, refit.reason = kl_without, LOWER if np.isfinite(kl_without) else UNKNOWN
        else:
            refit.put(values)
    if kl <= kl_before and np.isfinite(kl):
        return kl
    for refit in refits:
        refit.take_back()
        refit.reason = refit.reason or LOWER
    return kl_before


class _Refit:
    """One site under way: the weights it came with, and those it may get.

    What it came with is not kept: the dense model has it. What it got is in the pruned model.

    Attributes:
        reason: Why the site is left alone; empty where it is refitted.
    """

    def __init__(
        self,
        method: Compensation,
        reference: DenseReference,
        small: PreTrainedModel,
        site: Site,
        keep: KeepIndices,
        below: Below,
        cache: RefitCache | None = None,
    ) -> None:
        self.method, self.reference, self.site, self.keep, self.below = method, reference, site, keep, below
        there = next(other for other in architecture_of(small).sites(small, empty=True) if other.name == site.name)
        self.small, self.there, self.columns = small, there, _columns(reference.model, site, keep)
        self.had_bias, self.biased = self.projection.bias is not None, may_have_bias(small, there)
        self.reason = ""
        refit_below = bool(below) and len(self.columns) > 0
        self.input_side = InputSide(reference.model, small, site, np.unique(keep[site.name])) if refit_below else None
        key = site.name, self.columns.numpy().tobytes()
        values = cache.get(key) if cache else None
        try:
            values = values or self._fitted()
        except Refused as reason:
            self.reason = str(reason)
            if self.input_side:
                self.input_side.put(self.input_side.before)
        if values:
            self._put_own(values)
        if cache:
            cache.put(key, values or self.projection.values())

    @property
    def projection(self) -> Projection:
        """The pruned model's, as it is now: weights that are brought in have other memory each time."""
        return projection_of(self.small, self.there)

    @property
    def before(self) -> Values:
        """Weight [D, S] and bias [D] as surgery left them."""
        dense = projection_of(self.reference.model, self.site)
        bias = dense.weight.new_zeros(len(dense.weight)) if dense.bias is None else dense.bias
        return dense.weight.detach()[:, self.columns], bias.detach()

    def values(self) -> list[Values]:
        """Copies weights and biases as they are now: the projection's, and those of the other side."""
        return [self.projection.values(), *(self.input_side.values() if self.input_side else [])]

    def _fitted(self) -> Values:
        """Gives new weights and bias, in the precision of the model, with the other side refitted before; raises
        Refused."""
        if len(self.columns) > MOST_COLUMNS:
            raise Refused(f"{len(self.columns)} columns are too many to be refitted at once")
        if self.input_side and self.method.both_sides:
            self.input_side.refit(self.method, self.below[False], self.reference.weights_of(self.site))
        regression = self._regression(held_out=False)
        xx, yx = regression.centred() if self.biased else regression.plain()
        if not (xx.isfinite().all() and yx.isfinite().all()):
            raise Refused("what flows through it on calibration data is not finite")
        weight, bias = (values.double() for values in self.before)
        if len(self.columns):
            weight = self.method.fit(weight, xx, yx, self.site.unit_size)
        elif not self.biased:
            raise Refused("nothing is left of it")
        if self.biased:
            bias = regression.y - weight @ regression.x  # b' = E[y] - W' E[x]
        precision = self.projection.weight.dtype
        weight, bias = weight.to(precision), bias.to(precision)
        if not (weight.isfinite().all() and bias.isfinite().all()):
            raise Refused(f"its new weights are beyond the range of {str(precision).removeprefix('torch.')}")
        return weight, bias

    def _regression(self, held_out: bool) -> Regression:
        """Gives the site's moments on the data that refits are made from, or on held-out data."""
        reference, site = self.reference, self.site
        if self.below:
            weights = None if held_out else reference.weights_of(site)
            return Regression.of_pairs(self.below[held_out].pairs(site), weights)
        if site.kind == "expert":
            batches = reference.held_out if held_out else reference.batches
            return Regression.of_pairs(reference.rerouted(site, self.keep, batches))
        return reference.regression(site, held_out).at(self.columns)

    def put(self, values: Sequence[Values]) -> None:
        """Puts weights and biases into the pruned model, those that `values` gives."""
        own, *made = values
        self._put_own(own)
        if self.input_side:
            self.input_side.put(made)

    def _put_own(self, values: Values) -> None:
        """Puts weight and bias of the projection into the pruned model."""
        self.projection.write(values[0])
        if self.biased:
            self.projection.write_bias(values[1])

    def take_back(self) -> None:
        """Puts back what surgery left, on both sides; a bias that it did not leave goes."""
        if self.input_side:
            self.input_side.put(self.input_side.before)
        self.projection.write(self.before[0])
        if self.had_bias:
            self.projection.write_bias(self.before[1])
        elif self.biased:
            self.projection.write_bias(None)

    def gave_bias(self) -> bool:
        """Whether the projection has a bias that it did not come with."""
        return not self.had_bias and self.projection.bias is not None

    def figures(self) -> SiteFigures:
        """Says what became of the site, for the report."""
        held_out = self._regression(held_out=True)
        before = held_out.error(*(values.double() for values in self.before))
        after = before if self.reason else held_out.error(*self.projection.float64())
        site = self.site.name, self.site.kind, self.site.layer
        return SiteFigures(*site, not self.reason, before, after, self.reason)


def _cut_sites(model: PreTrainedModel, keep: KeepIndices) -> list[Site]:
    """The sites of the dense model whose projections are refitted, in the order of its forward pass.

    Those where something went; where experts went, all that stay behind the router are refitted together.
    """
    sites = architecture_of(model).sites(model)
    cut = [site for site in sites if len(keep.get(site.name, range(site.units))) < site.units]
    together = {part.name for site in cut if site.kind == "expert" for part in members(site, sites)}
    return [site for site in cut if site.name not in together]


def _columns(model: PreTrainedModel, site: Site, keep: KeepIndices) -> torch.Tensor:
    """[S], the inputs of a site's projection that stay; of all experts side by side, behind a router."""
    if site.kind != "expert":
        return torch.as_tensor(spread(np.unique(keep[site.name]), site.unit_size))
    return torch.as_tensor(columns_behind(site, members(site, architecture_of(model).sites(model)), keep))


def passes(method: Compensation, sites: float, layers: int, batches: float, held_out: float) -> float:
    """Estimates the forward passes of a dense model over one batch, or as much work, of a compensation.

    Args:
        method: How sites are refitted.
        sites: Number of sites that are cut.
        layers: Number of layers.
        batches, held_out: Number of batches that refits are made from, and that they are judged by.
    """
    judged = held_out * (sites / 2 + 3 if method.guard else 2)  # its guard runs what comes after each site in turn
    if not method.bottom_up:
        return judged
    looks = (1 + method.both_sides) * batches + held_out
    return judged + BOTH_MODELS * (batches + held_out + sites / layers * looks / 2)  # a look takes half a layer


def memory(sizes: Sizes, sets: int = 0) -> tuple[int, int]:
    """Estimates bytes: of the widest site while it is refitted, and of refits that are kept, were there no limit.

    Args:
        sets: Number of sets that are measured.
    """
    widest = max(sizes.squares) + 8 * sizes.hidden * max(sizes.columns)
    return MATRICES * widest, sizes.item * sizes.hidden * sum(sizes.columns) * sets
