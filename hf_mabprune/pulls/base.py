"""The contract of a pull engine: (arm, batch) pairs in, rewards out, spread over the processes of a launch.

A pull of arm a on batch b masks a on top of the context S (arms already removed), reads the outputs and takes the mask
off again. What comes back does not depend on the number of processes: the pairs of a call are dealt out in order and
the rewards gathered, so that every process holds the same numbers.
Symbols: B examples in a batch, n pairs, K arms.
"""

import itertools
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from transformers import PreTrainedModel

from hf_mabprune.arms import ArmTable
from hf_mabprune.masking import keep_masks, masked
from hf_mabprune.rewards import NEEDS, QUANTITIES, REWARDS, Observation, kl_divergence, probabilities_of
from hf_mabprune.tasks.base import Batch, Task
from hf_mabprune.tasks.readout import NO_TARGET, Readout

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
CACHE_BYTES = 2**31
WHOLE = -1  # in the place of the number of a part: the batch as it is


@dataclass(frozen=True)
class Original:
    """What the unpruned model says on a part of a batch.

    Attributes:
        probabilities: [B, P, C], softmax of the logits, in the precision that KL divergences are formed in.
        size: Bytes.
    """

    readout: Readout
    probabilities: torch.Tensor
    size: int

    @classmethod
    def of(cls, readout: Readout) -> "Original":
        """With the probabilities computed."""
        probabilities = probabilities_of(readout.logits)
        return cls(readout, probabilities, readout.logits.nbytes + probabilities.nbytes)


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
    seconds: float = 0.0  # of wall-clock time spent on pulls


class Pulls(ABC):
    """Measures arms of one model on a fixed list of mini-batches, which an engine may run in parts.

    Args:
        model: The unpruned model, in evaluation mode; its weights are never touched.
        arms: All arms.
        task: Gives the logits that count and their targets.
        batches: Mini-batches of calibration data.
        reward: Name of a reward in `rewards.REWARDS`.
        accelerator: Of the launch.
        cache_bytes: Logits of the unpruned model are kept up to this size, computed again beyond it.
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
        self._counted: set[tuple[int, int]] = set()  # places whose unpruned pass is paid for
        self._recorded: set[tuple[int, int]] = set()  # and those whose pass in the current context is
        self.kept = np.ones(len(arms), dtype=bool)
        self._cache_bytes = cache_bytes
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

    def observe(self, batch: int, kept: Bools) -> Observation:
        """One forward pass over a batch with only the `kept` arms, [K], against the unpruned model."""
        place = (batch, WHOLE)
        with torch.inference_mode():
            self.cost.forward_tokens += self.batches[batch]["input_ids"].numel() * (1 + (place not in self._counted))
            self._counted.add(place)
            return observation(self._original(place), self._forward(self.batches[batch], kept), QUANTITIES)

    @abstractmethod
    def _observe_arms(
        self, place: tuple[int, int], groups: Sequence[Ints]
    ) -> Iterator[tuple[Observation, Observation, Observation, float]]:
        """For each group of arms in turn: the observations of the unpruned model, [B], in the context, [B], and with
        each of the arms masked, [A, B]; and the tokens that one pull of the group costs.

        Args:
            place: Batch and part.
            groups: Arms that may share a forward pass.
        """

    def _forward(self, inputs: Batch, kept: Bools) -> Readout:
        """One full forward pass with only `kept` arms."""
        with masked(self.model, **keep_masks(self.model, self.arms.kept_units(kept))):
            return self.task.readout(self.model, inputs)

    def _original(self, place: tuple[int, int]) -> Original:
        """What the unpruned model says on a part of a batch, from the cache where it fits."""
        if place in self._originals:
            return self._originals[place]
        original = Original.of(self._forward(self._inputs(place), np.ones(len(self.arms), dtype=bool)))
        self._cache_bytes -= original.size
        if self._cache_bytes >= 0:
            self._originals[place] = original
        return original


def observation(original: Original, readout: Readout, quantities: Sequence[str]) -> Observation:
    """The quantities asked for of one forward pass, beside the unpruned model's.

    Args:
        readout: Logits may have more dimensions in front than targets: [A, B, P, C] for A arms.
    """
    found = dict.fromkeys(QUANTITIES, torch.empty(0, dtype=torch.float64))
    if "kl" in quantities:
        divergence = kl_divergence(original.readout.logits, readout.logits, original.probabilities)
        counted = (readout.targets != NO_TARGET).to(divergence.dtype)
        found["kl"] = ((divergence * counted).sum(-1) / counted.sum(-1)).double()
    for name, measured in (("loss", Readout.losses), ("correct", Readout.correct)):
        if name in quantities:
            leading = readout.logits.shape[:-3]
            copies = readout.logits.reshape(-1, *readout.logits.shape[-3:])
            values = torch.stack([measured(Readout(logits, readout.targets)).double() for logits in copies])
            found[name] = values.reshape(*leading, -1)
    return Observation(**found)
