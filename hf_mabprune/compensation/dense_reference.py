"""What a compensation learns from: the dense model on calibration data, and the divergence of a pruned one from it.

Symbols: S inputs of a projection that stay; D outputs; N positions seen; B examples in a batch.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedModel

from hf_mabprune.architectures import Site, architecture_of, linear_at
from hf_mabprune.compensation.base import Regression, float64_of
from hf_mabprune.effects.activations import Moments, moments, watch_inputs
from hf_mabprune.effects.patching import answer, replaced
from hf_mabprune.tasks.base import Batch, Task
from hf_mabprune.tasks.readout import Readout, ReadoutCache
from hf_mabprune.tasks.sampling import split_by_length

HELD_OUT = 4  # one batch in so many is held out for the guard


@dataclass(frozen=True)
class DenseReference:
    """The dense model and what it gives on calibration data; several selections share it.

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
    cache: ReadoutCache = field(default_factory=ReadoutCache, repr=False)  # of the model, by held-out batch

    @classmethod
    def on(cls, model: PreTrainedModel, task: Task, batches: Sequence[Batch]) -> "DenseReference":
        """Holds out every fourth calibration batch; batches run in parts of like lengths.

        Raises:
            ValueError: If there are fewer than two batches.
        """
        if len(batches) < 2:
            raise ValueError(
                f"compensation takes at least 2 calibration batches, one of them held out, got {len(batches)}: raise "
                "calibration_examples or lower batch_size"
            )
        fitting = [batch for number, batch in enumerate(batches) if number % HELD_OUT != 1]
        return cls(model, task, _in_parts(fitting), _in_parts(batches[1::HELD_OUT]))

    def moments(self, kind: str, held_out: bool = False) -> dict[str, Moments]:
        """Of the inputs of all sites of a kind, by the path of the projection; one pass when first asked for."""
        if (kind, held_out) not in self.found:
            batches = self.held_out if held_out else self.batches
            sites = [site for site in architecture_of(self.model).sites(self.model) if site.kind == kind]
            self.found[kind, held_out] = moments(self.model, self.task, batches, sites)
            self.spent.append(_tokens(batches))
        return self.found[kind, held_out]

    def regression(self, site: Site, held_out: bool = False) -> Regression:
        """Of a site's outputs on all its inputs, both the dense model's."""
        if (site.output, held_out) not in self.regressions:
            found = self.moments(site.kind, held_out)[site.output]
            self.regressions[site.output, held_out] = Regression.of_moments(found, linear_at(self.model, site.output))
        return self.regressions[site.output, held_out]

    def pairs(
        self, small: PreTrainedModel, site: Site, batches: Sequence[Batch]
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The pruned model's inputs x [N, S] of a site and the dense model's outputs y [N, D], batch by batch."""
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
        """KL divergence of each held-out example, without those of broken batches; a single 0 where there is no other,
        as `divergence` has it."""
        found = list(self._divergences(small)) or [torch.zeros(1)]
        return torch.cat(found).double().cpu().numpy()

    def _divergences(
        self, small: PreTrainedModel, finished: "FinishedLayers | None" = None
    ) -> Iterator[torch.Tensor]:
        """[B] of each held-out batch, without those on which the dense model itself is not finite."""
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
        """What the dense model says, from the cache where it fits."""

        def made() -> Readout:
            self.spent.append(_tokens([batch]))
            return self.task.readout(self.model, batch)

        return self.cache.get(number, made)


class FinishedLayers:
    """The layers of a pruned model that no refit will change any more, and what they give on held-out batches.

    Args:
        reference: Whose held-out batches are meant.
        small: The pruned model.
    """

    def __init__(self, reference: DenseReference, small: PreTrainedModel) -> None:
        self.reference, self.small = reference, small
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
        for number, batch in enumerate(self.reference.held_out):
            with self.skipped(number), suppress(_Seen):
                handle = self.layers[count - 1].register_forward_hook(partial(_take, outputs))
                try:
                    self.reference.task.readout(self.small, _moved(batch, self.small))
                finally:
                    handle.remove()
        self.reference.spent.append(_tokens(self.reference.held_out) * (count - self.count) / len(self.layers))
        self.count, self._outputs = count, outputs

    @contextmanager
    def skipped(self, number: int) -> Iterator[None]:
        """They answer with what they gave on a held-out batch, while the context is open."""
        finished = self.layers[: self.count]
        with replaced({layer: partial(answer, self._outputs[number]) for layer in finished}):
            yield


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


def _in_parts(batches: Iterable[Batch]) -> list[Batch]:
    """The same examples with less padding."""
    return list(chain.from_iterable(map(split_by_length, batches)))


def _tokens(batches: Sequence[Batch]) -> int:
    """Padding included."""
    return sum(batch["input_ids"].numel() for batch in batches)
