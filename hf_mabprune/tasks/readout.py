"""What one forward pass says: logits and targets of a batch, and per-example scores of a split.

Symbols: B examples in a batch, N in a split; P positions of an example whose logits may count; C classes or
vocabulary; A, K arms.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from hf_mabprune.tasks.divergence import kl_divergence, probabilities_of

NO_TARGET = -100
CHUNK = 2**22  # logits that are widened to double precision at a time, 32 MiB
FEW_CLASSES = 8  # that get one coordinate each


@dataclass(frozen=True)
class Readout:
    """What a task reads off one forward pass of a model whose outputs are distributions over classes.

    A task whose outputs are something else has a subclass of its own, which says what its losses, its predictions and
    the distance between two outputs are.

    Attributes:
        logits: [B, P, C], any floating dtype (P = 1 for a classifier); [A, B, P, C], for A arms, is for `divergence`
            alone.
        targets: [B, P], the right class of each position; -100 where there is none.
    """

    logits: torch.Tensor
    targets: torch.Tensor

    def counted(self) -> torch.Tensor:
        """[B, P] bool, which positions count."""
        return self.targets != NO_TARGET

    def positions(self) -> torch.Tensor:
        """[B] int64, how many positions of each example count."""
        return self.counted().sum(1)

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
        return hits.to(wide_dtype(self.logits)) / self.positions().clamp(min=1)

    def predictions(self) -> tuple[torch.Tensor, torch.Tensor]:
        """What metrics compare, [B] each: class of the largest logit at the first counted position, right class."""
        rows = torch.arange(len(self.targets), device=self.targets.device)
        first = self.counted().int().argmax(1)
        return self.logits[rows, first].argmax(-1), self.targets[rows, first]

    def scores(self) -> "Scores":
        """What metrics need of these examples, on the CPU."""
        columns = (self.losses(), self.positions(), *self.predictions())
        return Scores(*(column.detach().cpu().numpy() for column in columns))

    def distribution(self) -> torch.Tensor:
        """The distributions of the outputs, which `divergence` measures from: probabilities, [B, P, C].

        Float64 for up to 1,024 classes, else float32.
        """
        return probabilities_of(self.logits)

    def divergence(self, original: "Readout", distribution: torch.Tensor | None = None) -> torch.Tensor:
        """[B] or [A, B], KL divergence from the dense model's outputs in nats, mean over the counted positions.

        Differentiable. Float64 for up to 1,024 classes, else float32.

        Args:
            original: What the dense model says on the batch.
            distribution: `original.distribution()`, where it is at hand.
        """
        each = kl_divergence(original.logits, self.logits, distribution)
        counted = self.counted()
        return torch.where(counted, each, 0).sum(-1) / counted.sum(-1).clamp(min=1)

    def few_outputs(self) -> bool:
        """Whether `coordinates` are exact, one or a few an example, rather than drawn."""
        return self.logits.shape[-2] == 1 and self.logits.shape[-1] <= FEW_CLASSES

    def coordinates(self, original: "Readout", samples: int, seed: int) -> Iterator[torch.Tensor]:
        """[B] float64 each, values u_d in which the divergence is half a squared distance, to second order.

        `divergence(original)` ~ 1/2 sum_d u_d^2, and u_d = 0 where this is the original. With p and q the softmax of
        the original's logits and of these, and d(y) = log q(y) - log p(y) less its mean under p:
        sqrt(p_0 p_1) (odds - original odds) for two classes, sqrt(p_y) d(y) for each class y of up to 8; else d(y) for
        labels y drawn from p at every position, summed over the positions of an example. Drawn coordinates give the
        divergence in the mean over draws. Differentiable.

        Args:
            original: What the dense model says on the batch.
            samples: Label draws where the coordinates are not exact.
            seed: Of the draws.
        """
        exact = self.few_outputs()
        wide = wide_dtype(self.logits) if exact else torch.float32
        logs, before = (each.logits.to(wide).log_softmax(-1) for each in (self, original))
        before = before.detach()
        if exact and logs.shape[-1] == 2:
            odds = (logs[:, 0, 1] - logs[:, 0, 0]) - (before[:, 0, 1] - before[:, 0, 0])
            yield (before[:, 0].sum(-1) / 2).exp() * odds
            return
        p = before.exp()
        change = logs - before
        mean = (p * change).sum(-1)
        if exact:
            for label in range(logs.shape[-1]):
                yield p[:, 0, label].sqrt() * (change[:, 0, label] - mean[:, 0])
            return
        counted = self.counted()
        generator = torch.Generator(device=logs.device).manual_seed(seed)
        for _ in range(samples):
            drawn = torch.multinomial(p.flatten(0, 1), 1, generator=generator).view_as(counted)
            picked = change.gather(-1, drawn.unsqueeze(-1)).squeeze(-1) - mean
            moved = torch.where(counted, picked, 0).sum(1, dtype=torch.float64)
            yield moved / (samples * counted.sum(1).clamp(min=1)).sqrt()


def wide_dtype(tensor: torch.Tensor) -> torch.dtype:
    """The widest floating dtype of the tensor's device: MPS has no double precision."""
    return torch.float32 if tensor.device.type == "mps" else torch.float64


def _summed(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """[b, P, C], [b, P] -> [b] sum of the cross-entropy over the counted positions."""
    flat = logits.to(wide_dtype(logits)).flatten(0, 1)
    each = cross_entropy(flat, targets.flatten(), reduction="none", ignore_index=NO_TARGET)
    return each.view(targets.shape).sum(1)


@dataclass(frozen=True)
class Scores:
    """What the metrics of a whole split are made from, one entry an example.

    Attributes:
        losses: [N] float64, mean over the counted positions: of the cross-entropy in nats, for classes.
        positions: [N] int64, number of counted positions.
        predicted: [N] int64, class of the largest logit at the first counted position; float64 numbers, [N] or
            [N, outputs], where a task predicts numbers.
        reference: What is right there, of the same shape and dtype.
    """

    losses: NDArray[np.float64]
    positions: NDArray[np.int64]
    predicted: NDArray[Any]
    reference: NDArray[Any]

    @classmethod
    def concatenate(cls, parts: Sequence["Scores"]) -> "Scores":
        """The scores of several batches as one, in their order."""
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in cls.__dataclass_fields__))

    def take(self, rows: NDArray[np.int64]) -> "Scores":
        """Those of some examples, [n]; a row may be taken more than once, as a bootstrap does."""
        return Scores(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))


@dataclass
class ReadoutCache:
    """What a model said on batches, as long as the logits of all fit.

    Attributes:
        limit: Bytes.
    """

    limit: int = 2**30
    found: dict[Hashable, Readout] = field(default_factory=dict)

    def get(self, key: Hashable, make: Callable[[], Readout]) -> Readout:
        """What is there under a key, else what `make` gives."""
        if key in self.found:
            return self.found[key]
        made = make()
        if sum(kept.logits.nbytes for kept in self.found.values()) + made.logits.nbytes <= self.limit:
            self.found[key] = made
        return made
