"""What one forward pass says: logits and targets of a batch, and per-example scores of a split.

Symbols: B examples in a batch, N in a split; P positions of an example whose logits may count; C classes or
vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

NO_TARGET = -100
CHUNK = 2**22  # logits that are widened to double precision at a time, 32 MiB


@dataclass(frozen=True)
class Readout:
    """What a task reads off one forward pass.

    Attributes:
        logits: [B, P, C], any floating dtype (P = 1 for a classifier).
        targets: [B, P], the right class of each position; -100 where there is none.
    """

    logits: torch.Tensor
    targets: torch.Tensor

    def positions(self) -> torch.Tensor:
        """[B] int64, how many positions of each example count."""
        return (self.targets != NO_TARGET).sum(1)

    def losses(self) -> torch.Tensor:
        """[B] float64 (float32 on MPS), mean cross-entropy in nats over the counted positions; 0 where none counts.

        Differentiable. The logits are widened a few examples at a time, so the extra memory does not grow with the
        batch, in the backward pass neither: there the chunks are computed again.
        """
        examples = max(1, CHUNK // (self.logits.shape[1] * self.logits.shape[2]))
        chunks = list(zip(self.logits.split(examples), self.targets.split(examples), strict=True))
        if torch.is_grad_enabled() and self.logits.requires_grad:
            sums = [checkpoint(_summed, *chunk, use_reentrant=False, preserve_rng_state=False) for chunk in chunks]
        else:
            sums = [_summed(*chunk) for chunk in chunks]
        return torch.cat(sums) / self.positions().clamp(min=1)

    def correct(self) -> torch.Tensor:
        """[B] float64 (float32 on MPS), fraction of the counted positions whose largest logit is the right one."""
        hits = (self.logits.argmax(-1) == self.targets).sum(1)
        return hits.to(_wide(self.logits)) / self.positions().clamp(min=1)

    def scores(self) -> "Scores":
        """What metrics need of these examples, on the CPU."""
        rows = torch.arange(len(self.targets), device=self.targets.device)
        first = (self.targets != NO_TARGET).int().argmax(1)
        predicted, reference = self.logits[rows, first].argmax(-1), self.targets[rows, first]
        columns = (self.losses().detach(), self.positions(), predicted, reference)
        return Scores(*(column.cpu().numpy() for column in columns))


def _wide(tensor: torch.Tensor) -> torch.dtype:
    """The widest floating dtype of the tensor's device: MPS has no double precision."""
    return torch.float32 if tensor.device.type == "mps" else torch.float64


def _summed(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """[b, P, C], [b, P] -> [b] sum of the cross-entropy over the counted positions."""
    flat = logits.to(_wide(logits)).flatten(0, 1)
    each = cross_entropy(flat, targets.flatten(), reduction="none", ignore_index=NO_TARGET)
    return each.view(targets.shape).sum(1)


@dataclass(frozen=True)
class Scores:
    """What the metrics of a whole split are made from, one entry an example.

    Attributes:
        losses: [N] float64, mean cross-entropy in nats over the counted positions.
        positions: [N] int64, number of counted positions.
        predicted: [N] int64, class of the largest logit at the first counted position.
        reference: [N] int64, right class there.
    """

    losses: NDArray[np.float64]
    positions: NDArray[np.int64]
    predicted: NDArray[np.int64]
    reference: NDArray[np.int64]

    @classmethod
    def concatenate(cls, parts: Sequence["Scores"]) -> "Scores":
        """The scores of several batches as one, in their order."""
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in cls.__dataclass_fields__))

    def take(self, rows: NDArray[np.int64]) -> "Scores":
        """Those of some examples, [n]; a row may be taken more than once, as a bootstrap does."""
        return Scores(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))
