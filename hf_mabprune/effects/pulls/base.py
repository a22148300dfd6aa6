"""The contract of a pull engine: (arm, batch) pairs in, rewards out, spread over the processes of a launch.

A pull of arm a on batch b masks a on top of the context S (arms already removed), reads the outputs and takes the mask
off again. What comes back does not depend on the number of processes: the pairs of a call are dealt out in order and
the rewards gathered, so that every process holds the same numbers.
Symbols: B examples in a batch, n pairs, K arms.
"""

import itertools
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from transformers import PreTrainedModel

from hf_mabprune.arms import ArmTable
from hf_mabprune.effects.gradients import effects
from hf_mabprune.effects.masking import StandIn, keep_masks, masked
from hf_mabprune.effects.rewards import NEEDS, QUANTITIES, REWARDS, Observation
from hf_mabprune.tasks.base import Batch, Task
from hf_mabprune.tasks.readout import Readout

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
CACHE_BYTES = 2**31
WHOLE = -1  # in the place of the number of a part: the batch as it is


@dataclass(frozen=True)
class Original:
    """What the dense model says on a part of a batch.

    Attributes:
        distribution: [B, P, C], of the outputs, in the precision that divergences are formed in.
        size: Bytes.
    """

    readout: Readout
    distribution: torch.Tensor
    size: int

    @classmethod
    def of(cls, readout: Readout) -> "Original":
        """With the distribution computed."""
        distribution = readout.distribution()
        return cls(readout, distribution, readout.logits.nbytes + distribution.nbytes)


@dataclass(frozen=True)
class Cell:
    """Work that one process does: a group of arms on one part of a batch.

    Attributes:
        place: Batch and part.
        pairs: Numbers of the (arm, batch) pairs of the call.
        work: Roughly, in tokens.
    """

    place: tuple[int, int]
    pairs: Ints
    work: float


@dataclass
class Cost:
    """What the search has paid, over all processes; what several of them do alike is counted once."""

    pulls: int = 0
    forward_tokens: int = 0  # positions of input that went through the model, padding included
    backward_tokens: int = 0  # the same of backward passes
    seconds: float = 0.0  # of wall-clock time spent on pulls


class Pulls(ABC):
    """Measures arms of one model on a fixed list of mini-batches, which an engine may run in parts.

    Args:
        model: The dense model, in evaluation mode; its weights are never touched.
        arms: All arms.
        task: Gives the logits that count and their targets.
        batches: Mini-batches of calibration data.
        reward: Name of a reward in `rewards.REWARDS`.
        accelerator: Of the launch.
        cache_bytes: Logits of the dense model are kept up to this size, computed again beyond it.
        stand_ins: What comes in the place of an arm while it is pulled, by the path of its site's projection; without
            it, nothing. `observe` masks without it.
    """

    records: ClassVar[bool] = False  # whether a pass in the context is made once a place

    def __init__(
        self,
        model: PreTrainedModel,
        arms: ArmTable,
        task: Task,
        batches: Sequence[Batch],
        reward: str = "kl",
        accelerator: Accelerator | None = None,
        cache_bytes: int = CACHE_BYTES,
        stand_ins: Mapping[str, StandIn] | None = None,
    ) -> None:
        self.model = model
        self.arms = arms
        self.task = task
        self.reward, self.needs = REWARDS[reward], NEEDS[reward]
        self.accelerator = accelerator or Accelerator(cpu=not torch.cuda.is_available())
        self.batches = [{name: tensor.to(model.device) for name, tensor in batch.items()} for batch in batches]
        self.cost = Cost()
        self.arms_a_forward = 1
        self._parts = [[batch] for batch in self.batches]
        self._counted: set[tuple[int, int]] = set()  # places whose dense pass is paid for
        self._recorded: set[tuple[int, int]] = set()  # and those whose pass in the current context is
        self.kept = np.ones(len(arms), dtype=bool)
        self._cache_bytes = cache_bytes
        self.stand_ins = stand_ins
        self._originals: dict[tuple[int, int], Original] = {}

    def set_context(self, kept: Bools) -> None:
        """From here on, pulls are made with all arms masked that are not in `kept`, [K]."""
        self.kept = kept.copy()
        self._recorded.clear()

    def pull(self, arms: Ints, batches: Ints) -> NDArray[np.float64]:
        """Pulls `arms[i]` on `batches[i]` for every i.

        Returns:
            [n, 2], mean and second moment over the batch of the per-example reward; not finite where the loss of the
            batch is not.
        """
        start = time.perf_counter()
        cells = self._cells(arms, batches)
        for place in dict.fromkeys(cell.place for cell in cells):
            self._count_once(place)
        parts = max(len(parts) for parts in self._parts)
        table = torch.zeros(len(arms), parts, 3, dtype=torch.float64, device=self.accelerator.device)
        with torch.inference_mode():
            for place, mine in itertools.groupby(self._share(cells), key=lambda cell: cell.place):
                groups = [cell.pairs for cell in mine]
                seen = self._observe_arms(place, [arms[group] for group in groups])
                for group, (*observations, tokens) in zip(groups, seen, strict=True):
                    reward = self.reward(*observations).reshape(len(group), -1)
                    share = torch.full((len(group),), tokens, dtype=torch.float64, device=reward.device)
                    sums = torch.stack([reward.sum(-1), reward.square().sum(-1), share], dim=-1)
                    table[torch.as_tensor(group, device=table.device), place[1]] = sums
        values = self.accelerator.reduce(table).cpu().numpy().sum(axis=1)
        if self.accelerator.num_processes > 1:  # what one had no memory for, all leave alone from here on
            fits = torch.tensor([self.arms_a_forward], device=self.accelerator.device)
            self.arms_a_forward = int(self.accelerator.gather(fits).min())
        self.cost.forward_tokens += round(float(values[:, 2].sum()))
        self.cost.pulls += len(arms)
        self.cost.seconds += time.perf_counter() - start
        examples = np.array([len(self.batches[batch]["input_ids"]) for batch in batches])
        return values[:, :2] / examples[:, None]

    def _cells(self, arms: Ints, batches: Ints) -> list[Cell]:
        """The work of a call, in an order in which what belongs to one place is done together.

        It is made before it is dealt out, so that no number depends on how many processes there are.
        """
        cells = []
        for batch in np.unique(batches):
            pairs = np.flatnonzero(batches == batch)
            layer, kind = self.arms.layer[arms[pairs]], self.arms.kind[arms[pairs]]
            order = np.lexsort((pairs, kind, layer))
            sites = np.flatnonzero(np.diff(layer[order]) | (kind[order][1:] != kind[order][:-1])) + 1
            groups = [
                site[at : at + self.arms_a_forward]
                for site in np.split(pairs[order], sites)
                for at in range(0, len(site), self.arms_a_forward)
            ]
            depth = int(self.arms.layer.max()) + 1
            for part, inputs in enumerate(self._parts[batch]):
                tokens = inputs["input_ids"].numel()
                shares = [(depth - int(self.arms.layer[arms[group[0]]])) / depth for group in groups]
                cells += [
                    Cell((int(batch), part), group, tokens * len(group) * share)
                    for group, share in zip(groups, shares, strict=True)
                ]
        return cells

    def _share(self, cells: list[Cell]) -> list[Cell]:
        """This process's cells: a run of neighbours, so that few places are prepared by two processes."""
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        work = np.cumsum([cell.work for cell in cells])
        owner = ((work - work[0] / 2) / work[-1] * world).astype(int).clip(0, world - 1)
        return [cell for cell, process in zip(cells, owner, strict=True) if process == rank]

    def _count_once(self, place: tuple[int, int]) -> None:
        """Counts the passes that all arms of a place share, once however many processes make them."""
        tokens = self._inputs(place)["input_ids"].numel()
        passes = (place not in self._counted) + (self.records and place not in self._recorded)
        self.cost.forward_tokens += tokens * passes
        self._counted.add(place)
        self._recorded.add(place)

    def _inputs(self, place: tuple[int, int]) -> Batch:
        batch, part = place
        return self.batches[batch] if part == WHOLE else self._parts[batch][part]

    def effects(self, samples: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.float64], Ints, Ints]:
        """What removing each arm does to the outputs on all batches, to first order, in the context.

        The parts of batches are dealt out over processes; every one gets the same arrays.

        Args:
            samples, seed: Of the label draws, as those of `estimates.effects`.

        Returns:
            Effects [K, D] and the batch of each coordinate [D]; derivatives of the KL divergence [K, batches], means
            over the examples of each batch; the examples of each batch. A batch whose outputs are not finite has none.
        """
        start = time.perf_counter()
        places = [(batch, part) for batch, parts in enumerate(self._parts) for part in range(len(parts))]
        rank, world, device = self.accelerator.process_index, self.accelerator.num_processes, self.accelerator.device
        mine: dict[int, torch.Tensor] = {}
        slopes = torch.zeros(len(self.arms), len(places), dtype=torch.float64, device=device)
        passes = 0
        for number in range(rank, len(places), world):
            readout, inputs = self._original(places[number]).readout, self._inputs(places[number])
            original = replace(readout, logits=readout.logits.clone())  # made in inference mode, it takes no gradients
            mine[number], slopes[:, number], passes = effects(
                self.model, self.arms, self.task, inputs, self.kept, original, samples, seed + number,
                self.stand_ins,
            )  # fmt: skip
        passes = int(self.accelerator.gather(torch.tensor([passes], device=device)).max())
        sizes = np.array([len(self._inputs(place)["input_ids"]) for place in places])
        ends = np.cumsum(sizes * passes)
        table = torch.zeros(len(self.arms), int(ends[-1]), device=device)
        for number, found in mine.items():
            table[:, int(ends[number]) - found.shape[1] : int(ends[number])] = found
        for place in places:
            tokens = self._inputs(place)["input_ids"].numel()
            self.cost.forward_tokens += tokens * (1 + (place not in self._counted))
            self.cost.backward_tokens += tokens * (passes + int(not self.kept.all()))
            self._counted.add(place)
        whole, sums = (self.accelerator.reduce(each).cpu().numpy() for each in (table, slopes))
        self.cost.seconds += time.perf_counter() - start
        of_batch = np.array([batch for batch, _ in places])
        batch = np.repeat(of_batch, sizes * passes)
        broken = {*batch[~np.isfinite(whole).all(axis=0)], *of_batch[~np.isfinite(sums).all(axis=0)]}
        examples = np.bincount(of_batch, sizes).astype(np.int64)
        examples[list(broken)] = 0
        means = np.stack([sums[:, of_batch == number].sum(1) for number in range(len(examples))], 1)
        means = np.divide(means, examples, out=np.zeros_like(means), where=examples > 0)
        fine = examples[batch] > 0
        return whole[:, fine], means, batch[fine], examples

    def observe(self, batch: int, kept: Bools) -> Observation:
        """One forward pass over a batch with only the `kept` arms, [K], against the dense model."""
        place = (batch, WHOLE)
        with torch.inference_mode():
            self.cost.forward_tokens += self.batches[batch]["input_ids"].numel() * (1 + (place not in self._counted))
            self._counted.add(place)
            return observation(self._original(place), self._forward(self.batches[batch], kept), QUANTITIES)

    @abstractmethod
    def _observe_arms(
        self, place: tuple[int, int], groups: Sequence[Ints]
    ) -> Iterator[tuple[Observation, Observation, Observation, float]]:
        """For each group of arms in turn: the observations of the dense model, [B], in the context, [B], and with
        each of the arms masked, [A, B]; and the tokens that one pull of the group costs.

        Args:
            place: Batch and part.
            groups: Arms that may share a forward pass.
        """

    def _forward(self, inputs: Batch, kept: Bools, stand_ins: Mapping[str, StandIn] | None = None) -> Readout:
        """One full forward pass with only `kept` arms."""
        with masked(self.model, **keep_masks(self.model, self.arms.kept_units(kept)), stand_ins=stand_ins):
            return self.task.readout(self.model, inputs)

    def _original(self, place: tuple[int, int]) -> Original:
        """What the dense model says on a part of a batch, from the cache where it fits."""
        if place in self._originals:
            return self._originals[place]
        with torch.inference_mode():  # what is kept must not hold on to the pass that made it
            original = Original.of(self._forward(self._inputs(place), np.ones(len(self.arms), dtype=bool)))
        self._cache_bytes -= original.size
        if self._cache_bytes >= 0:
            self._originals[place] = original
        return original


def observation(original: Original, readout: Readout, quantities: Sequence[str]) -> Observation:
    """The quantities asked for of one forward pass, beside the dense model's.

    Args:
        readout: Logits may have more dimensions in front than targets: [A, B, P, C] for A arms.
    """
    found = dict.fromkeys(QUANTITIES, torch.empty(0, dtype=torch.float64))
    if "kl" in quantities:
        found["kl"] = readout.divergence(original.readout, original.distribution).double()
    leading, each = readout.logits.shape[:-3], readout.logits.shape[-3:]
    copies = [replace(readout, logits=logits) for logits in readout.logits.reshape(-1, *each)]
    if "loss" in quantities:
        found["loss"] = torch.stack([copy.losses().double() for copy in copies]).reshape(*leading, -1)
    if "correct" in quantities:
        found["correct"] = torch.stack([copy.correct().double() for copy in copies]).reshape(*leading, -1)
    return Observation(**found)
