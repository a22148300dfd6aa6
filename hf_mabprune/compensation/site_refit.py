"""The refit of one site of a pruned model: new weights and bias, and on the other side those that make its columns.

Symbols: C inputs of a projection, S that stay; D outputs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from hf_mabprune.architectures import Projection, Site, architecture_of, projection_of
from hf_mabprune.architectures.projections import cuts, spread
from hf_mabprune.architectures.sites import columns_behind, fed_by, kept_of, members
from hf_mabprune.arms import KeepIndices
from hf_mabprune.compensation.base import Compensation, Refused, Regression
from hf_mabprune.compensation.dense_reference import DenseReference
from hf_mabprune.compensation.input_side import InputSide
from hf_mabprune.compensation.refit_cache import RefitCache, Values
from hf_mabprune.compensation.side_by_side import SideBySide
from hf_mabprune.surgery.biases import may_have_bias
from hf_mabprune.surgery.layers import layers_gone, names_after

Below = dict[bool, SideBySide]  # whether on held-out data -> both models; empty where refits see the dense one alone
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


class SiteRefit:
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
        renamed = names_after(reference.model, keep)
        name, others = renamed(site.name), architecture_of(small).sites(small, empty=True)
        there = next(other for other in others if other.name == name)
        self.small, self.there, self.columns = small, there, _columns(reference.model, site, keep)
        self.outputs = _outputs(reference.model, site, keep)
        self.had_bias, self.biased = self.projection.bias is not None, may_have_bias(small, there)
        self.reason = ""
        refit_below = bool(below) and len(self.columns) > 0
        made = reference.model, small, site, kept_of(site, keep), renamed
        self.input_side = InputSide(*made) if refit_below else None
        outputs = self.outputs.numpy().tobytes() if torch.is_tensor(self.outputs) else b""
        key = site.name, self.columns.numpy().tobytes() + outputs
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
        return dense.weight.detach()[self.outputs][:, self.columns], bias.detach()[self.outputs]

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
        return self._of_all_outputs(held_out).of(self.outputs)

    def _of_all_outputs(self, held_out: bool) -> Regression:
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


def cut_sites(model: PreTrainedModel, keep: KeepIndices, up: bool = False) -> list[Site]:
    """The sites of the dense model whose projections are refitted, in the order of its forward pass.

    Those where something went; where experts went, all that stay behind the router are refitted together.

    Args:
        model: The dense model.
        keep: Unit indices that stay.
        up: Whether refits make up for what is missing below: then all sites behind a layer that went are among them.
    """
    sites, gone = architecture_of(model).sites(model), layers_gone(model, keep)[0]
    if gone and up:
        first = min(layer.depth for layer in architecture_of(model).layers(model) if layer.path in gone)
        cut = [site for site in sites if site.depth > first and site.prefix.removesuffix(".") not in gone]
    else:
        cut = [site for site in sites if len(kept_of(site, keep)) < site.units]
    together = {part.name for site in cut if site.kind == "expert" for part in members(site, sites)}
    return [site for site in cut if site.name not in together]


def _outputs(model: PreTrainedModel, site: Site, keep: KeepIndices) -> torch.Tensor | slice:
    """[D], the outputs of a site's projection that stay: all, unless they are the units of another site."""
    follower = fed_by(site, architecture_of(model).sites(model))
    if follower is None or follower.name not in keep:
        return slice(None)
    found = cuts(model.base_model, follower, kept_of(follower, keep))
    return torch.as_tensor(next(cut.index for cut in found if cut.path == f"{site.name}.weight"))


def _columns(model: PreTrainedModel, site: Site, keep: KeepIndices) -> torch.Tensor:
    """[S], the inputs of a site's projection that stay; of all experts side by side, behind a router."""
    if site.kind != "expert":
        return torch.as_tensor(spread(kept_of(site, keep), site.unit_size))
    return torch.as_tensor(columns_behind(site, members(site, architecture_of(model).sites(model)), keep))
