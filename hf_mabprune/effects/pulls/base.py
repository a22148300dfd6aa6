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
from typing import Any, ClassVar

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from transformers import PreTrainedModel

from hf_mabprune.architectures import architecture_of
from hf_mabprune.arms import LAYER, ArmTable
from hf_mabprune.effects.broken import cause
from hf_mabprune.effects.dense_outputs import WHOLE, DenseOutputs, Recorded
from hf_mabprune.effects.gradients import effects
from hf_mabprune.effects.masking import StandIn, keep_masks, masked
from hf_mabprune.effects.pulls.cost import Cost
from hf_mabprune.effects.rewards import QUANTITIES, REWARDS, Observation
from hf_mabprune.progress import over
from hf_mabprune.tasks.base import Task
from hf_mabprune.tasks.batch import Batch
from hf_mabprune.tasks.readout import Readout

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
SPLIT = "calibration"  # which the batches of pulls are of
OVERHEAD = 3e7  # multiply-accumulates that would take as long as what a layer costs besides them, on a CPU, about
LARGE = 1e15  # effects whose squares float32 may not hold


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


class Pulls(ABC):
    """Measures arms of one model on a fixed list of mini-batches, which an engine may run in parts.

    Args:
        model: The dense model, in evaluation mode; its weights are never touched.
        arms: All arms.
        task: Gives the logits that count and their targets.
        batches: Mini-batches of calibration data.
        reward: Name of a reward.
        accelerator: Of the launch.
        outputs: Record of what the dense model says on calibration batches; None makes one.
        stand_ins: What comes in the place of an arm while it is pulled, by name of its site; without it,
            nothing. `observe` masks without it.
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
        outputs: DenseOutputs | None = None,
        stand_ins: Mapping[str, StandIn] | None = None,
    ) -> None:
        self.model = model
        self.arms = arms
        self.task = task
        self.reward = REWARDS.get(reward)()
        self.accelerator = accelerator or Accelerator(cpu=not torch.cuda.is_available())
        self.batches = [batch.to(model.device) for batch in batches]
        self.cost = Cost()
        self.arms_a_forward = 1
        self._parts = [[batch] for batch in self.batches]
        self._counted: set[tuple[int, int]] = set()  # places whose dense pass is paid for
        self._recorded: set[tuple[int, int]] = set()  # and those whose pass in the current context is
        self.kept = np.ones(len(arms), dtype=bool)
        architecture = architecture_of(model)
        self.layers = architecture.layers(model)
        sites = architecture.whole_layers(model) if LAYER in arms.kinds() else architecture.sites(model)
        self.sites = {site.name: site for site in sites}
        order = {name: number for number, name in enumerate(self.sites)}
        self._turn = np.array([order[name] for name in arms.site])  # [K], of the site of each arm in a forward pass
        self._depth = np.array([self.sites[name].depth for name in arms.site])  # [K], layers before each arm
        layer = model.base_model.get_submodule(self.layers[0].path)
        self._overhead = OVERHEAD / sum(weight.numel() for weight in layer.parameters())  # in tokens
        self.outputs = DenseOutputs() if outputs is None else outputs
        self.stand_ins = stand_ins

    def set_context(self, kept: Bools) -> None:
        """From here on, pulls are made with all arms masked that are not in `kept`, [K]."""
        self.kept = kept.copy()
        self._recorded.clear()

    def forget(self) -> None:  # noqa: B027
        """Gives back the memory of what was recorded in the context; pulls that are made after all record it again."""

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
                pulled = over(zip(groups, seen, strict=True), "pulls on a batch", "forward passes", len(groups))
                for group, (*observations, tokens) in pulled:
                    reward = self.reward(*observations).reshape(len(group), -1)
                    share = torch.full((len(group),), tokens, dtype=torch.float64, device=reward.device)
                    sums = torch.stack([reward.sum(-1), reward.square().sum(-1), share], dim=-1)
                    table[torch.as_tensor(group, device=table.device), place[1]] = sums
        values = self.accelerator.reduce(table).cpu().numpy().sum(axis=1)
        if self.accelerator.num_processes > 1:  # what one had no memory for, all leave alone from here on
            fits = torch.tensor([self.arms_a_forward], device=self.accelerator.device)
            self.arms_a_forward = int(self.accelerator.gather(fits).min())
        tokens = round(float(values[:, 2].sum()))
        self.cost += Cost(len(arms), tokens, seconds=time.perf_counter() - start)
        examples = np.array([self.batches[batch].examples for batch in batches])
        return values[:, :2] / examples[:, None]

    def _cells(self, arms: Ints, batches: Ints) -> list[Cell]:
        """The work of a call, in an order in which what belongs to one place is done together.

        It is made before it is dealt out, so that no number depends on how many processes there are.
        """
        cells = []
        for batch in np.unique(batches):
            pairs = np.flatnonzero(batches == batch)
            turn = self._turn[arms[pairs]]
            order = np.argsort(turn, kind="stable")
            sites = np.flatnonzero(np.diff(turn[order])) + 1
            groups = [
                site[at : at + self.arms_a_forward]
                for site in np.split(pairs[order], sites)
                for at in range(0, len(site), self.arms_a_forward)
            ]
            for part, inputs in enumerate(self._parts[batch]):
                place = int(batch), part
                passes = [self._part_of_a_pass(arms[group[0]]) for group in groups]
                work = [
                    part_of_it * (inputs.tokens * len(group) + self._overhead)
                    for group, part_of_it in zip(groups, passes, strict=True)
                ]
                if self.records and place not in self._recorded:
                    work[0] += inputs.tokens + self._overhead
                cells += [Cell(place, group, own) for group, own in zip(groups, work, strict=True)]
        return cells

    def _part_of_a_pass(self, arm: int) -> float:
        """Says, roughly, which part of a forward pass a pull of an arm runs: all sites behind its own, if not all."""
        sites = len(self.sites)
        return (sites - int(self._turn[arm]) - 0.5) / sites if self.records else 1.0

    def _share(self, cells: list[Cell]) -> list[Cell]:
        """This process's cells: a run of neighbours, so that few places are prepared by two processes."""
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        work = np.array([cell.work for cell in cells])
        middles = np.cumsum(work) - work / 2
        owner = (middles / work.sum() * world).astype(int).clip(0, world - 1)
        return [cell for cell, process in zip(cells, owner, strict=True) if process == rank]

    def _count_once(self, place: tuple[int, int]) -> None:
        """Counts the passes that all arms of a place share, once however many processes make them."""
        tokens = self._inputs(place).tokens
        passes = (place not in self._counted) + (self.records and place not in self._recorded)
        self.cost += Cost(forward_tokens=tokens * passes)
        self._counted.add(place)
        self._recorded.add(place)

    def _inputs(self, place: tuple[int, int]) -> Batch:
        batch, part = place
        return self.batches[batch] if part == WHOLE else self._parts[batch][part]

    def effects(self, samples: int, seed: int) -> tuple[NDArray[np.floating[Any]], NDArray[np.float64], Ints, Ints]:
        """Estimates what removing each arm does to the outputs on all batches, to first order, in the context.

        The parts of batches are dealt out over processes; every one gets the same arrays.

        Args:
            samples, seed: Of the label draws, as those of `gradients.effects`.

        Returns:
            Effects [K, D] and the batch of each coordinate [D]; derivatives of the KL divergence [K, batches], means
            over the examples of each batch; the examples of each batch. A batch whose outputs are not finite has none.

        Raises:
            ValueError: If there is no other batch.
        """
        start = time.perf_counter()
        places = [(batch, part) for batch, parts in enumerate(self._parts) for part in range(len(parts))]
        sizes = np.array([self._inputs(place).examples for place in places])
        changes, sums, passes = self._effects_at(places, sizes, samples, seed)
        for place in places:
            tokens = self._inputs(place).tokens
            forward = tokens * (1 + (place not in self._counted))
            self.cost += Cost(0, forward, tokens * (passes + int(not self.kept.all())))
            self._counted.add(place)
        self.cost += Cost(seconds=time.perf_counter() - start)
        of_batch = np.array([batch for batch, _ in places])
        batch = np.repeat(of_batch, sizes * passes)
        broken = {*batch[~np.isfinite(changes).all(axis=0)], *of_batch[~np.isfinite(sums).all(axis=0)]}
        examples = np.bincount(of_batch, sizes).astype(np.int64)
        examples[list(broken)] = 0
        means = np.stack([sums[:, of_batch == number].sum(1) for number in range(len(examples))], 1)
        means = np.divide(means, examples, out=np.zeros_like(means), where=examples > 0)
        fine = examples[batch] > 0
        if not fine.any():
            reason = self.cause(*range(len(examples)))
            raise ValueError(f"no calibration batch has finite outputs and gradients: {reason}")
        changes = changes[:, fine]
        if np.abs(changes).max(initial=0) > LARGE:
            changes = changes.astype(float)
        return changes, means, batch[fine], examples

    def cause(self, *batches: int) -> str:
        """Says why the outputs on some batches are not finite, and what to do about it; half a sentence."""
        return cause(self.model, self.task, [self.batches[batch] for batch in batches])

    def _effects_at(
        self, places: Sequence[tuple[int, int]], sizes: Ints, samples: int, seed: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float64], int]:
        """Takes the effects at every place, each on one process, and gathers them.

        Args:
            places: Parts of batches.
            sizes: [places], examples of each.

        Returns:
            Effects [K, D], place by place; sums of derivatives over the examples of each place, [K, places]; backward
            passes that a place took, D over the sum of sizes.
        """
        rank, world, device = self.accelerator.process_index, self.accelerator.num_processes, self.accelerator.device
        own: dict[int, torch.Tensor] = {}  # of this process, by number of the place
        slopes = torch.zeros(len(self.arms), len(places), dtype=torch.float64, device=device)
        passes, tokens = 0, [self._inputs(place).tokens for place in places]
        for number in over(dealt(tokens, world)[rank], "effects of all arms", "parts"):
            readout, inputs = self._dense(places[number]).readout, self._inputs(places[number])
            dense = replace(readout, outputs=readout.outputs.clone())  # made in inference mode, it takes no gradients
            own[number], slopes[:, number], passes = effects(
                self.model, self.arms, self.task, inputs, self.kept, dense, samples, seed + number, self.stand_ins
            )
        passes = int(self.accelerator.gather(torch.tensor([passes], device=device)).max())
        ends = np.cumsum(sizes * passes)
        table = torch.zeros(len(self.arms), int(ends[-1]), device=device)
        for number, changes in own.items():
            table[:, int(ends[number]) - changes.shape[1] : int(ends[number])] = changes
        whole, sums = (self.accelerator.reduce(part).cpu().numpy() for part in (table, slopes))
        return whole, sums, passes

    def observe(self, batch: int, kept: Bools) -> Observation:
        """One forward pass over a batch with only the `kept` arms, [K], against the dense model."""
        place = (batch, WHOLE)
        with torch.inference_mode():
            passes = 1 + (place not in self._counted)
            self.cost += Cost(forward_tokens=self.batches[batch].tokens * passes)
            self._counted.add(place)
            return observation(self._dense(place), self._forward(self.batches[batch], kept), QUANTITIES)

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
        masks = keep_masks(self.model, self.arms.kept_units(kept))
        with masked(self.model, masks=masks, stand_ins=stand_ins):
            return self.task.readout(self.model, inputs)

    def _dense(self, place: tuple[int, int]) -> Recorded:
        """Gives what the dense model says on a part of a batch, from the record; no masks may be on."""
        batch, part = place
        key = SPLIT, batch, part if len(self._parts[batch]) > 1 else WHOLE  # an only part is the batch as it is
        everything = np.ones(len(self.arms), dtype=bool)
        return self.outputs.recorded(key, lambda: self._forward(self._inputs(place), everything))


def dealt(work: Sequence[float], processes: int) -> list[list[int]]:
    """Deals pieces of work out: the largest that is left goes to the process that has least, each time.

    Args:
        work: What each piece costs.
        processes: Number of processes.

    Returns:
        Numbers of the pieces of each process, in their order.
    """
    hands: list[list[int]] = [[] for _ in range(processes)]
    held = [0.0] * processes
    for number in sorted(range(len(work)), key=lambda number: -work[number]):
        least = held.index(min(held))
        hands[least].append(number)
        held[least] += work[number]
    return [sorted(hand) for hand in hands]


def observation(dense: Recorded, readout: Readout, quantities: Sequence[str]) -> Observation:
    """Takes the quantities asked for from one forward pass, beside what the dense model says.

    Args:
        dense: Record of the same batch.
        readout: Outputs of the pass; logits may have more dimensions in front than targets: [A, B, P, C] for A arms.
        quantities: Names of fields of an observation.
    """
    values = dict.fromkeys(QUANTITIES, torch.empty(0, dtype=torch.float64))
    if "kl" in quantities:
        values["kl"] = readout.divergence(dense.readout, dense.distribution).double()
    leading, trailing = readout.outputs.shape[:-3], readout.outputs.shape[-3:]
    copies = [replace(readout, outputs=outputs) for outputs in readout.outputs.reshape(-1, *trailing)]
    if "loss" in quantities:
        values["loss"] = torch.stack([copy.losses().double() for copy in copies]).reshape(*leading, -1)
    if "correct" in quantities:
        values["correct"] = torch.stack([copy.correct().double() for copy in copies]).reshape(*leading, -1)
    return Observation(**values)
