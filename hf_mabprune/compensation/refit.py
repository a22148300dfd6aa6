"""Refits the output projections of a pruned model to give what the unpruned one gave, site by site.

The guard begins with all refits and takes back, in the order of the forward pass, each without which the KL divergence
of the outputs from the unpruned model's is lower on held-out calibration data: least squares at one site can harm the
output, most of all where much has gone. Refits help each other, so that to add them one by one would refuse too many.
Symbols: S inputs of a projection that stay; D outputs; N positions seen.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedModel

from hf_mabprune.activations import Moments, moments, watch_inputs
from hf_mabprune.architectures import Site, architecture_of, linear_at
from hf_mabprune.arms import KeepIndices
from hf_mabprune.compensation.base import Compensation, Refused, Regression, float64_of
from hf_mabprune.stubs import answer, replaced
from hf_mabprune.surgery import declare_biases, may_have_bias
from hf_mabprune.tasks.base import Batch, Task
from hf_mabprune.tasks.readout import Readout

HELD_OUT = 4  # one batch in so many is held out for the guard
CACHE_BYTES = 2**30  # of the unpruned model's logits
LOWER = "held-out KL divergence is lower without"

Values = tuple[torch.Tensor, torch.Tensor]  # weight [D, S] and bias [D], float64
Known = dict[tuple[str, bytes], Values]  # by path of the projection and the columns that stay


@dataclass(frozen=True)
class SiteFigures:
    """What became of one site.

    Attributes:
        refitted: Whether it has new weights.
        error_before, error_after: Mean squared distance of the site's output from the unpruned model's, on held-out
            data, over that output's variance; after is that of the weights it ended with.
        reason: Why the site was left alone; empty where it was not.
    """

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
        kl_before, kl_after: Mean KL divergence of the outputs from the unpruned model's, on held-out data, in nats.
        parameters: Added by biases that were not there before.
        seconds: Of the whole compensation; what several selections share counts where it was made.
        forward_tokens: Tokens, padding included, that passed through the unpruned or the pruned model; a part of its
            layers counts as that part.
    """

    sites: list[SiteFigures]
    kl_before: float
    kl_after: float
    parameters: int
    seconds: float
    forward_tokens: int


@dataclass(frozen=True)
class Teacher:
    """The unpruned model and what it gives on calibration data; several selections share it.

    Attributes:
        batches: That refits are made from.
        held_out: That the guard judges by.
    """

    model: PreTrainedModel
    task: Task
    batches: Sequence[Batch]
    held_out: Sequence[Batch]
    spent: list[float] = field(default_factory=list, repr=False)  # forward tokens
    found: dict[tuple[str, bool], dict[str, Moments]] = field(default_factory=dict, repr=False)  # see `moments`
    regressions: dict[tuple[str, bool], Regression] = field(default_factory=dict, repr=False)  # see `regression`
    cache: dict[int, Readout] = field(default_factory=dict, repr=False)  # of the model, by number of a held-out batch

    @classmethod
    def on(cls, model: PreTrainedModel, task: Task, batches: Sequence[Batch]) -> "Teacher":
        """Holds out every fourth calibration batch.

        Raises:
            ValueError: If there are fewer than two batches.
        """
        if len(batches) < 2:
            raise ValueError(
                f"compensation takes at least 2 calibration batches, one of them held out, got {len(batches)}: raise "
                "calibration_examples or lower batch_size"
            )
        fitting = [batch for number, batch in enumerate(batches) if number % HELD_OUT != 1]
        return cls(model, task, fitting, batches[1::HELD_OUT])

    def moments(self, kind: str, held_out: bool = False) -> dict[str, Moments]:
        """Of the inputs of all sites of a kind, by the path of the projection; one pass when first asked for."""
        if (kind, held_out) not in self.found:
            batches = self.held_out if held_out else self.batches
            sites = [site for site in architecture_of(self.model).sites(self.model) if site.kind == kind]
            self.found[kind, held_out] = moments(self.model, self.task, batches, sites)
            self.spent.append(_tokens(batches))
        return self.found[kind, held_out]

    def regression(self, site: Site, held_out: bool = False) -> Regression:
        """Of a site's outputs on all its inputs, both the unpruned model's."""
        if (site.output, held_out) not in self.regressions:
            found = self.moments(site.kind, held_out)[site.output]
            self.regressions[site.output, held_out] = Regression.of_moments(found, linear_at(self.model, site.output))
        return self.regressions[site.output, held_out]

    def pairs(
        self, small: PreTrainedModel, site: Site, batches: Sequence[Batch]
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The pruned model's inputs x [N, S] of a site and the unpruned model's outputs y [N, D], batch by batch."""
        weight, bias = float64_of(linear_at(self.model, site.output))
        layers = len(architecture_of(small).layer_list(small))
        self.spent.append(2 * _tokens(batches) * (site.layer + 1) / layers)
        for batch in batches:
            hidden, x = (_input_of(model, self.task, batch, site) for model in (self.model, small))
            yield x, nn.functional.linear(hidden, weight.float(), bias.float())

    def divergence(
        self, small: PreTrainedModel, limit: float = float("inf"), finished: "FinishedLayers | None" = None
    ) -> float:
        """Mean KL divergence of a pruned model's outputs from this one's over the held-out examples.

        Args:
            limit: Where it is sure to come out above this, the rest is not measured and it counts as infinite.
            finished: Layers of the pruned model that need not be run again.
        """
        examples, total = sum(len(batch["input_ids"]) for batch in self.held_out), 0.0
        for found in self._divergences(small, finished):
            total += float(found.sum())
            if total > limit * examples:
                return float("inf")
        return total / examples

    def divergences(self, small: PreTrainedModel) -> NDArray[np.float64]:
        """KL divergence of each held-out example; those of broken batches are left out."""
        return torch.cat(list(self._divergences(small))).double().cpu().numpy()

    def _divergences(
        self, small: PreTrainedModel, finished: "FinishedLayers | None" = None
    ) -> Iterator[torch.Tensor]:
        """[B] of each held-out batch, without those on which the unpruned model itself is not finite."""
        for number, batch in enumerate(self.held_out):
            with torch.inference_mode(), finished.skipped(number) if finished else nullcontext():
                batch = _moved(batch, small)
                original = self._original(number, batch)
                if not original.logits.isfinite().all():
                    continue
                found = self.task.readout(small, batch).divergence(original)
            self.spent.append(_tokens([batch]) * (1 - finished.share if finished else 1))
            yield found

    def _original(self, number: int, batch: Batch) -> Readout:
        """What the unpruned model says, from the cache where it fits."""
        if number in self.cache:
            return self.cache[number]
        self.spent.append(_tokens([batch]))
        found = self.task.readout(self.model, batch)
        if sum(kept.logits.nbytes for kept in self.cache.values()) + found.logits.nbytes <= CACHE_BYTES:
            self.cache[number] = found
        return found


class FinishedLayers:
    """The layers of a pruned model that no refit will change any more, and what they give on held-out batches.

    Args:
        teacher: Whose held-out batches are meant.
        small: The pruned model.
    """

    def __init__(self, teacher: Teacher, small: PreTrainedModel) -> None:
        self.teacher, self.small = teacher, small
        self.layers = list(architecture_of(small).layer_list(small))
        self.count = 0
        self._outputs: list[Any] = []  # of the last of them, a held-out batch each

    @property
    def share(self) -> float:
        """Of all layers."""
        return self.count / len(self.layers)

    @torch.inference_mode()
    def raise_to(self, count: int) -> None:
        """The first `count` layers are finished: runs those that were not yet, on every held-out batch."""
        if count == self.count:
            return
        outputs: list[Any] = []
        for number, batch in enumerate(self.teacher.held_out):
            with self.skipped(number), suppress(_Seen):
                handle = self.layers[count - 1].register_forward_hook(partial(_take, outputs))
                try:
                    self.teacher.task.readout(self.small, _moved(batch, self.small))
                finally:
                    handle.remove()
        self.teacher.spent.append(_tokens(self.teacher.held_out) * (count - self.count) / len(self.layers))
        self.count, self._outputs = count, outputs

    @contextmanager
    def skipped(self, number: int) -> Iterator[None]:
        """They answer with what they gave on a held-out batch, while the context is open."""
        finished = self.layers[: self.count]
        with replaced({layer: partial(answer, self._outputs[number]) for layer in finished}):
            yield


@torch.no_grad()
def compensate(
    method: Compensation, teacher: Teacher, small: PreTrainedModel, keep: KeepIndices
) -> CompensationFigures:
    """Refits the cut output projections of a pruned model, in place, its config with them where a bias appears.

    Args:
        method: From `make_compensation`.
        teacher: The unpruned model and its data.
        small: From `surgery.prune_copy(teacher.model, keep, ...)`.
        keep: Unit indices that stayed.

    Returns:
        What was done at each site that was cut, in the order of the forward pass.
    """
    started, spent = time.monotonic(), sum(teacher.spent)
    parameters = small.num_parameters()
    kl_before = teacher.divergence(small)
    refits = [_Refit(method, teacher, small, site, keep) for site in _cut_sites(teacher.model, keep)]
    kl = teacher.divergence(small)
    if method.guard:
        kl = _guard(teacher, small, refits, kl_before, kl)
    declare_biases(small, [refit.site for refit in refits if refit.gave_bias()])
    return CompensationFigures(
        sites=[refit.figures() for refit in refits],
        kl_before=kl_before,
        kl_after=kl,
        parameters=small.num_parameters() - parameters,
        seconds=time.monotonic() - started,
        forward_tokens=round(sum(teacher.spent) - spent),
    )


@torch.no_grad()
def refit_all(
    method: Compensation,
    teacher: Teacher,
    small: PreTrainedModel,
    keep: KeepIndices,
    known: Known,
) -> None:
    """The same without a guard, and without a config that says where biases came.

    Args:
        known: What earlier calls with this method and teacher came to; it is added to.
    """
    for site in _cut_sites(teacher.model, keep):
        _Refit(method, teacher, small, site, keep, None if method.bottom_up else known)


def _guard(
    teacher: Teacher, small: PreTrainedModel, refits: Sequence["_Refit"], kl_before: float, kl: float
) -> float:
    """Takes back the refits without which the held-out divergence is lower; all, if it is lowest with none.

    Returns:
        The divergence now.
    """
    finished = FinishedLayers(teacher, small)
    for refit in refits:
        if refit.reason:
            continue
        finished.raise_to(refit.site.layer)
        refit.put(refit.before)
        found = teacher.divergence(small, kl, finished)
        if found < kl or not np.isfinite(kl):
            kl, refit.reason = found, LOWER
        else:
            refit.put(refit.after)
    if kl <= kl_before:
        return kl
    for refit in refits:
        refit.put(refit.before)
        refit.reason = refit.reason or LOWER
    return kl_before


class _Refit:
    """One site under way: the weights it came with, and those it may get."""

    def __init__(
        self,
        method: Compensation,
        teacher: Teacher,
        small: PreTrainedModel,
        site: Site,
        keep: KeepIndices,
        known: Known | None = None,
    ) -> None:
        self.method, self.teacher, self.small, self.site = method, teacher, small, site
        self.projection, self.columns = linear_at(small, site.output), _columns(site, keep)
        self.had_bias, self.biased = self.projection.bias is not None, may_have_bias(small, site)
        self.before = self.after = float64_of(self.projection)
        self.reason = ""
        key = site.output, self.columns.numpy().tobytes()
        try:
            self.after = known[key] if known and key in known else self._fitted()
        except Refused as reason:
            self.reason = str(reason)
        if known is not None:
            known[key] = self.after
        if not self.reason:
            self.put(self.after)

    def _fitted(self) -> Values:
        """New weights and bias; raises Refused."""
        found = self._regression(held_out=False)
        xx, yx = found.centred() if self.biased else (found.xx, found.yx)
        if not (xx.isfinite().all() and yx.isfinite().all()):
            raise Refused("what flows through it on calibration data is not finite")
        weight = self.method.fit(self.before[0], xx, yx, self.site.unit_size)
        return weight, found.y - weight @ found.x if self.biased else self.before[1]

    def _regression(self, held_out: bool) -> Regression:
        """On the data that refits are made from, or on held-out data."""
        teacher, site = self.teacher, self.site
        if self.method.bottom_up:
            batches = teacher.held_out if held_out else teacher.batches
            return Regression.of_pairs(teacher.pairs(self.small, site, batches))
        return teacher.regression(site, held_out).at(self.columns)

    def put(self, values: Values) -> None:
        """Weight and bias into the pruned model; a bias that it may have and did not have comes and goes with them."""
        weight, bias = values
        self.projection.weight.copy_(weight)
        if self.had_bias:
            self.projection.bias.copy_(bias)
        elif self.biased:
            value = bias.to(self.projection.weight.dtype)
            new = nn.Parameter(value, requires_grad=self.projection.weight.requires_grad)
            self.projection.register_parameter("bias", None if values is self.before else new)

    def gave_bias(self) -> bool:
        """Whether the projection has a bias that it did not come with."""
        return not self.had_bias and self.projection.bias is not None

    def figures(self) -> SiteFigures:
        """For the report."""
        held_out = self._regression(held_out=True)
        before = held_out.error(*self.before)
        after = before if self.reason else held_out.error(*self.after)
        return SiteFigures(self.site.kind, self.site.layer, not self.reason, before, after, self.reason)


def _cut_sites(model: PreTrainedModel, keep: KeepIndices) -> list[Site]:
    """The sites of the unpruned model where something went, in the order of its forward pass."""
    sites = architecture_of(model).sites(model)
    cut = [site for site in sites if len(keep.of(site.kind).get(site.layer, range(site.units))) < site.units]
    return sorted(cut, key=lambda site: (site.layer, site.kind == "neuron"))


def _columns(site: Site, keep: KeepIndices) -> torch.Tensor:
    """[S], the inputs of a site's projection that stay."""
    units = np.unique(keep.of(site.kind)[site.layer])
    return torch.as_tensor((units[:, None] * site.unit_size + np.arange(site.unit_size)).ravel())


class _Seen(Exception):
    """The rest of a forward pass is of no interest."""


def _take(found: list[Any], module: nn.Module, arguments: Any, output: Any) -> None:
    """A hook that ends the pass with its module's output."""
    found.append(output)
    raise _Seen


def _input_of(model: PreTrainedModel, task: Task, batch: Batch, site: Site) -> torch.Tensor:
    """[N, columns] float32, what flows into a site's projection, padding left out."""
    found = []

    def see(_: Site, hidden: torch.Tensor, counted: torch.Tensor) -> None:
        found.append(hidden[counted].float())
        raise _Seen

    with suppress(_Seen):
        watch_inputs(model, task, [batch], [site], see)
    return found[0]


def _moved(batch: Batch, model: PreTrainedModel) -> Batch:
    return {name: tensor.to(model.device) for name, tensor in batch.items()}


def _tokens(batches: Sequence[Batch]) -> int:
    """Padding included."""
    return sum(batch["input_ids"].numel() for batch in batches)
