"""What a compensation learns from: the dense model on calibration data, and the divergence of a pruned one from it.

Symbols: S inputs of a projection that stay; D outputs; N positions seen; B examples in a batch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedModel

from hf_mabprune.architectures import Site, architecture_of, projection_of
from hf_mabprune.architectures.sites import columns_behind, kept_of, members
from hf_mabprune.arms import KeepIndices
from hf_mabprune.compensation.base import Regression
from hf_mabprune.compensation.side_by_side import Looked, input_of
from hf_mabprune.effects.activations import Moments, bytes_of, moments
from hf_mabprune.effects.dense_outputs import WHOLE, DenseOutputs
from hf_mabprune.effects.finished_layers import FinishedLayers
from hf_mabprune.effects.masking import keep_masks, masked
from hf_mabprune.effects.memory import Sizes
from hf_mabprune.effects.position_weights import PositionWeights, position_weights
from hf_mabprune.effects.pulls.base import SPLIT
from hf_mabprune.effects.pulls.cost import Cost
from hf_mabprune.progress import over
from hf_mabprune.tasks.base import Task
from hf_mabprune.tasks.batch import Batch
from hf_mabprune.tasks.readout import Readout
from hf_mabprune.tasks.sampling import split_by_length

HELD_OUT = 4  # one batch in so many is held out for the guard
SMALL = 128  # tokens of a batch that refits read whole: parts would take longer to start than they save


@dataclass
class DenseReference:
    """Knows what the dense model gives on calibration data; several selections share it.

    Attributes:
        model: The dense model.
        batches: The batches that refits are made from, in parts where they are large.
        held_out: Parts of the batches that the guard judges by.
        keys: Names of the held-out parts in the record of dense outputs.
        outputs: That record.
        read: Part of a position's weight that follows how much the outputs depend on it; the rest is even.
        further: How many of the last batches are of further text, which is not asked what the outputs depend on.
        cost: Of everything that was asked of it, passes of smaller models included.
    """

    model: PreTrainedModel
    task: Task
    batches: Sequence[Batch]
    held_out: Sequence[Batch]
    keys: Sequence[tuple[str, int, int]]
    outputs: DenseOutputs = field(default_factory=DenseOutputs, repr=False)
    read: float = 0.0
    further: int = 0
    cost: Cost = field(default_factory=Cost, repr=False)
    _moments: dict[tuple[str, bool], dict[str, Moments]] = field(default_factory=dict, repr=False)
    _regressions: dict[tuple[str, bool], Regression] = field(default_factory=dict, repr=False)
    _summaries: dict[int, torch.Tensor | None] = field(default_factory=dict, repr=False)  # by held-out part
    _asked: set[int] = field(default_factory=set, repr=False)  # held-out parts whose dense pass is in the cost

    @classmethod
    def on(
        cls,
        model: PreTrainedModel,
        task: Task,
        batches: Sequence[Batch],
        outputs: DenseOutputs | None = None,
        further: Sequence[Batch] = (),
        read: float = 0.0,
    ) -> "DenseReference":
        """Holds out every fourth calibration batch; large batches run in parts of like lengths.

        Args:
            model: The dense model.
            task: Gives the logits that count.
            batches: Calibration batches, the same that pulls are made on.
            outputs: Record of what the dense model says on them; None makes one.
            further: Batches that refits are made from as well.
            read: As that of `Compensation`.

        Raises:
            ValueError: If there are fewer than two batches.
        """
        if len(batches) < 2:
            raise ValueError(
                f"compensation takes at least 2 calibration batches, one of them held out, got {len(batches)}: raise "
                "calibration_examples, lower batch_size, or set compensation: null"
            )
        parts = [split_by_length(batch) for batch in batches]
        own = [batch for number, batch in enumerate(batches) if not _is_held_out(number)]
        fitting, beside = ([part for batch in whole for part in _parts(batch)] for whole in (own, further))
        held_out = [part for number, whole in enumerate(parts) if _is_held_out(number) for part in whole]
        keys = [
            (SPLIT, number, part if len(whole) > 1 else WHOLE)
            for number, whole in enumerate(parts)
            if _is_held_out(number)
            for part in range(len(whole))
        ]
        outputs = DenseOutputs() if outputs is None else outputs
        return cls(model, task, [*fitting, *beside], held_out, keys, outputs, read, len(beside))

    def moments(self, kind: str, held_out: bool = False) -> dict[str, Moments]:
        """Of the inputs of all sites of neurons, or of heads, by name of the site; taken when first asked for.

        One pass over the data for as many sites as there is room for.
        """
        if (kind, held_out) in self._moments:
            return self._moments[kind, held_out]
        batches, reserve, found = self.held_out if held_out else self.batches, self.outputs.reserve, {}
        sites = [site for site in architecture_of(self.model).sites(self.model) if site.kind == kind]
        for group in reserve.groups(sites, partial(bytes_of, self.model)):
            taken = moments(self.model, self.task, batches, group, () if held_out else self._weights)
            for name in list(taken):
                found[name] = replace(known := taken.pop(name), second=reserve.kept(known.second))
            self.cost += Cost(forward_tokens=_tokens(batches))
        self._moments[kind, held_out] = found
        return found

    def weights_of(self, site: Site) -> Iterator[torch.Tensor | float] | None:
        """Gives the weights of the positions that refits of a site see, batch by batch; None where all count alike."""
        if not self._weights or site.kind == "expert":
            return None
        return (own.at(site, batch) for own, batch in zip(self._weights, self.batches, strict=True))

    @cached_property
    def _weights(self) -> list[PositionWeights]:
        """Those of all sites, batch by batch; none where all positions count alike.

        A part `read` follows how much the outputs depend on a position of the calibration batches, which are enough to
        tell; the rest is even, over further batches as well.
        """
        if not self.read:
            return []
        sites = [site for site in architecture_of(self.model).sites(self.model) if site.kind != "expert"]
        asked = self.batches[: len(self.batches) - self.further]
        found, passes = position_weights(self.model, self.task, asked, sites)
        tokens = _tokens(asked)
        self.cost += Cost(forward_tokens=tokens, backward_tokens=passes * tokens)
        even = 1 - self.read
        known = [own.mixed(self.read * _tokens(self.batches) / tokens, even) for own in found]
        return known + [PositionWeights(even=even)] * self.further

    def record(self, kinds: Sequence[str]) -> None:
        """Records all that refits and the guard read of the dense model.

        Args:
            kinds: Kinds of sites that may be refitted.
        """
        for kind in kinds:
            if kind == "expert":
                continue  # what flows through those that stay depends on which do
            for held_out in (False, True):
                self.moments(kind, held_out)
        self._fill()
        for number, batch in enumerate(over(self.held_out, "held-out outputs")):
            self._said(number, batch.to(self.model.device))

    def regression(self, site: Site, held_out: bool = False) -> Regression:
        """Of a site's outputs on all its inputs, both the dense model's."""
        if (site.name, held_out) not in self._regressions:
            found = self.moments(site.kind, held_out)[site.name]
            made = Regression.of_moments(found, projection_of(self.model, site))
            made = replace(made, yx=self.outputs.reserve.kept(made.yx))
            self._regressions[site.name, held_out] = made
        return self._regressions[site.name, held_out]

    def rerouted(
        self, site: Site, keep: KeepIndices, batches: Sequence[Batch]
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """What the experts that stay behind a router are sent by the dense model once the others are gone, x [N, S],
        all of theirs side by side, and what all of them gave before, less biases that are left, y [N, D]; batch by
        batch."""
        everything = architecture_of(self.model).sites(self.model)
        own, looked = members(site, everything), Looked.at(site, everything)
        masks = keep_masks(self.model, {part.name: kept_of(part, keep) for part in (*own, site)})
        columns = torch.as_tensor(columns_behind(site, own, keep))
        weight = projection_of(self.model, site).weight.float()
        layers = len(architecture_of(self.model).layers(self.model))
        self.cost += Cost(forward_tokens=2 * _tokens(batches) * (site.depth + 1) / layers)
        for batch in over(batches, "inputs and outputs"):
            hidden, added = input_of(self.model, self.task, batch, looked)
            with masked(self.model, masks=masks):
                x, left = input_of(self.model, self.task, batch, looked)
            yield x[:, columns], nn.functional.linear(hidden, weight) + (added - left)

    def divergence(
        self, small: PreTrainedModel, limit: float = float("inf"), finished: FinishedLayers | None = None
    ) -> float:
        """Mean KL divergence of a pruned model's outputs from this one's over the held-out examples; infinite where
        nothing can be measured, so that nothing is taken for good.

        Args:
            limit: Where it is sure to come out above this, the rest is not measured and it counts as infinite.
            finished: Layers of the pruned model that need not be run again.
        """
        examples, total, measured = sum(batch.examples for batch in self.held_out), 0.0, 0
        for found in self._divergences(small, finished):
            total += float(found.sum())
            measured += len(found)
            if total > limit * examples:
                return float("inf")
        return total / examples if measured else float("inf")

    def divergences(self, small: PreTrainedModel) -> NDArray[np.float64]:
        """KL divergence of each held-out example, without those of broken batches; a single one that is infinite where
        there is no other, as `divergence` has it."""
        found = torch.cat([part.double().cpu() for part in self._divergences(small)])
        return found.numpy() if len(found) else np.full(1, np.inf)

    def divergences_of(self, small: PreTrainedModel, parts: Sequence[int]) -> list[NDArray[np.float64]]:
        """The same of some held-out parts by their numbers, part by part."""
        return [found.double().cpu().numpy() for found in self._divergences(small, None, parts)]

    def _divergences(
        self, small: PreTrainedModel, finished: FinishedLayers | None = None, parts: Sequence[int] | None = None
    ) -> Iterator[torch.Tensor]:
        """[B] of each held-out batch, empty where the dense model itself is not finite; infinite where the pruned one
        is not, so that it loses every comparison."""
        self._fill()
        finished = finished or FinishedLayers(small, self.task, self.held_out)
        numbers = range(len(self.held_out)) if parts is None else parts
        ahead = finished.ahead(numbers)
        for number in over(numbers, "held-out divergence"):
            batch = self.held_out[number]
            with torch.inference_mode(), ahead.skipped(number):
                batch = batch.to(small.device)
                dense = self._said(number, batch)
                if not dense.outputs.isfinite().all():
                    yield torch.empty(0)
                    continue
                found = self.task.readout(small, batch).divergence(dense, self._summary(number, dense))
            self.cost += Cost(forward_tokens=_tokens([batch]) * (1 - finished.share))
            yield found.nan_to_num(nan=torch.inf, posinf=torch.inf)

    def _fill(self) -> None:
        """Asks the dense model about all held-out parts at once, where its layers have to be brought in."""
        self.outputs.fill(self.keys, self.model, self.task, self.held_out)

    def _said(self, number: int, batch: Batch) -> Readout:
        """Gives what the dense model says on a held-out part, from the record."""

        if number not in self._asked:  # paid once, whoever put it on record: so no cost depends on other processes
            self._asked.add(number)
            self.cost += Cost(forward_tokens=_tokens([batch]))
        return self.outputs.readout(self.keys[number], lambda: self.task.readout(self.model, batch))

    def _summary(self, number: int, dense: Readout) -> torch.Tensor | None:
        """Gives the summary of what the dense model says on a held-out part, made once."""
        if number not in self._summaries:
            made = dense.summary()
            self._summaries[number] = None if made is None else self.outputs.reserve.kept(made)
        known = self._summaries[number]
        return None if known is None else known.to(dense.outputs.device)


def _is_held_out(number: int) -> bool:
    """Whether a calibration batch is for the guard and not for refits."""
    return number % HELD_OUT == 1


def _parts(batch: Batch) -> list[Batch]:
    """Splits a batch that refits are made from, where that saves time."""
    return split_by_length(batch) if batch.tokens > SMALL else [batch]


def _tokens(batches: Sequence[Batch]) -> int:
    """Padding included."""
    return sum(batch.tokens for batch in batches)


def memory(sizes: Sizes) -> int:
    """Estimates the bytes of moments, of the data for refits and of those held out, were there no limit."""
    return 2 * (sum(sizes.squares) + 4 * sizes.hidden * sum(sizes.columns))
