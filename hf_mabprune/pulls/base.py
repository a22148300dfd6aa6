"""The contract of a pull engine: (arm, batch) pairs in, rewards out, spread over the processes of a launch.

A pull of arm a on batch b masks a on top of the context S (arms already removed), reads the outputs and takes the mask
off again. What comes back does not depend on the number of processes: the pairs of a call are dealt out in order and
the rewards gathered, so that every process holds the same numbers.
Symbols: B examples in a batch, n pairs, K arms.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from transformers import PreTrainedModel

from hf_mabprune.arms import ArmTable
from hf_mabprune.masking import keep_masks, masked
from hf_mabprune.rewards import NEEDS, QUANTITIES, REWARDS, Observation, kl_divergence
from hf_mabprune.tasks.base import Batch, Task
from hf_mabprune.tasks.readout import NO_TARGET, Readout

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
CACHE_BYTES = 2**31


@dataclass
class Cost:
    """What the search has paid, over all processes; what each of them does for itself alike is counted once."""

    pulls: int = 0
    forward_tokens: int = 0  # positions of input that went through the model, padding included
    seconds: float = 0.0  # of wall-clock time spent on pulls


class Pulls(ABC):
    """Measures arms of one model on a fixed list of mini-batches.

    Args:
        model: The unpruned model, in evaluation mode; its weights are never touched.
        arms: All arms.
        task: Gives the logits that count and their targets.
        batches: Mini-batches of calibration data.
        reward: Name of a reward in `rewards.REWARDS`.
        accelerator: Of the launch.
        cache_bytes: Logits of the unpruned model are kept up to this size, computed again beyond it.
    """

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
        self.kept = np.ones(len(arms), dtype=bool)
        self._cache_bytes = cache_bytes
        self._originals: dict[int, Readout] = {}

    def set_context(self, kept: Bools) -> None:
        """From here on, pulls are made with all arms masked that are not in `kept`, [K]."""
        self.kept = kept.copy()

    def pull(self, arms: Ints, batches: Ints) -> NDArray[np.float64]:
        """Pulls `arms[i]` on `batches[i]` for every i.

        Returns:
            [n, 2], mean and second moment over the batch of the per-example reward; not finite where the loss of the
            batch is not.
        """
        start = time.perf_counter()
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        table = torch.zeros(len(arms), 3, dtype=torch.float64, device=self.accelerator.device)
        with torch.inference_mode():
            for batch in np.unique(batches):
                pairs = np.flatnonzero(batches == batch)
                pairs = pairs[np.argsort(self.arms.layer[arms[pairs]], kind="stable")]  # deep arms are cheap to pull
                mine = pairs[rank::world]
                for pair, (reward, tokens) in zip(mine, self._rewards(int(batch), arms[mine]), strict=True):
                    table[pair] = torch.stack([reward.mean(), reward.square().mean(), reward.new_tensor(tokens)])
        values = self.accelerator.reduce(table).cpu().numpy()
        self.cost.forward_tokens += int(values[:, 2].sum())
        self.cost.pulls += len(arms)
        self.cost.seconds += time.perf_counter() - start
        return values[:, :2]

    def observe(self, batch: int, kept: Bools) -> Observation:
        """One forward pass over a batch with only the `kept` arms, [K], against the unpruned model."""
        with torch.inference_mode():
            self.cost.forward_tokens += self._tokens(batch)
            return observation(self._original(batch), self._forward(batch, kept), QUANTITIES)

    @abstractmethod
    def _measure(self, batch: int, arms: Ints, original: Readout) -> Iterator[tuple[Observation, Observation, int]]:
        """For each arm in turn, the observations in the context without and with the arm masked, and their tokens.

        What is done once for all arms of a batch is done by every process, even where it has no arms of that batch,
        and counted in `cost`.
        """

    def _rewards(self, batch: int, arms: Ints) -> Iterator[tuple[torch.Tensor, int]]:
        original = self._original(batch)
        unpruned = observation(original, original, self.needs)
        for context, pulled, tokens in self._measure(batch, arms, original):
            yield self.reward(unpruned, context, pulled), tokens

    def _tokens(self, batch: int) -> int:
        return self.batches[batch]["input_ids"].numel()

    def _forward(self, batch: int, kept: Bools) -> Readout:
        """One full forward pass with only `kept` arms."""
        with masked(self.model, **keep_masks(self.model, self.arms.kept_units(kept))):
            return self.task.readout(self.model, self.batches[batch])

    def _original(self, batch: int) -> Readout:
        """What the unpruned model says, from the cache where it fits."""
        if batch in self._originals:
            return self._originals[batch]
        readout = self._forward(batch, np.ones(len(self.arms), dtype=bool))
        self.cost.forward_tokens += self._tokens(batch)
        self._cache_bytes -= readout.logits.numel() * readout.logits.element_size()
        if self._cache_bytes >= 0:
            self._originals[batch] = readout
        return readout


def observation(original: Readout, readout: Readout, quantities: Sequence[str]) -> Observation:
    """The quantities asked for of one forward pass, beside the unpruned model's."""
    found = dict.fromkeys(QUANTITIES, torch.empty(0, dtype=torch.float64))
    if "kl" in quantities:
        divergence = kl_divergence(original.logits, readout.logits)
        counted = (readout.targets != NO_TARGET).to(divergence.dtype)
        found["kl"] = ((divergence * counted).sum(1) / counted.sum(1)).double()
    if "loss" in quantities:
        found["loss"] = readout.losses().double()
    if "correct" in quantities:
        found["correct"] = readout.correct().double()
    return Observation(**found)
