"""A language model's head and what follows from its logits, which are never there all at once.

Logits of a vocabulary are hundreds of times as many numbers as the hidden states that they are made from: 512 windows
of a model with 640 hidden dimensions and 262,144 tokens have 64 GiB of the one and 160 MiB of the other. So hidden
states are kept, and logits are made a block of tokens at a time for a few positions, used and forgotten. Sums over the
vocabulary are carried from block to block, each scaled by the largest logit so far (Milakov & Gimelshein 2018, arXiv
1805.02867); nothing is left out. What is differentiable of it is in `vocabulary_gradients.py`.

Symbols: n positions; D hidden; V vocabulary, v of which make a block; h, h0 [n, D] hidden states of the model at hand
and of the dense one; z = h W' + b, z0 likewise; p the softmax of z0, q that of z.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple
from weakref import WeakSet

import torch
from torch import nn
from torch.nn.functional import linear
from transformers import PreTrainedModel

from hf_mabprune.architectures.patching import replaced
from hf_mabprune.tasks.divergence import LARGE_VOCABULARY, excess

ROWS = {"cpu": 256, "cuda": 4096}  # positions that share a pass over the vocabulary
TOKENS = {"cpu": 4096, "cuda": 32768}  # v
KEPT = 2**29  # bytes of logits that are kept at most, where a divergence and its gradient come from one pass


class Block(NamedTuple):
    """Some tokens of a head: their numbers, weights [v, D] in the precision of products, and biases [v] float32."""

    tokens: slice
    weight: torch.Tensor
    bias: torch.Tensor | None

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[n, v] float32."""
        moved = self.moved(hidden)
        return moved if self.bias is None else moved.add_(self.bias)

    def moved(self, change: torch.Tensor) -> torch.Tensor:
        """[n, v] float32, what a change of hidden states, [n, D] float32, does to the logits."""
        return linear(change.to(self.weight.dtype), self.weight).float()

    def pulled_back(self, slopes: torch.Tensor) -> torch.Tensor:
        """[n, D] float32, the gradient by hidden states of what has the slopes [n, v] float32 by the logits."""
        return (slopes.to(self.weight.dtype) @ self.weight).float()


@dataclass(frozen=True)
class Head:
    """The last layer of a language model, logits = W h + b.

    Attributes:
        weight: [V, D], in the precision of the model.
        bias: [V], None where there is none.
        half: Whether products are in bfloat16, as in training of mixed precision; else they are in float32.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None = None
    half: bool = False

    def blocks(self) -> Iterator[Block]:
        """Gives the vocabulary block by block."""
        size = TOKENS.get(self.weight.device.type, TOKENS["cpu"])
        precision = torch.bfloat16 if self.half else torch.float32
        for start in range(0, len(self.weight), size):
            tokens = slice(start, start + size)
            bias = None if self.bias is None else self.bias.detach()[tokens].float()
            yield Block(tokens, self.weight.detach()[tokens].to(precision), bias)

    def of(self, hidden: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """[n] float32, the logit of one token at each position."""
        logits = torch.linalg.vecdot(hidden, self.weight.detach()[tokens].float())
        return logits if self.bias is None else logits + self.bias.detach()[tokens].float()

    @cached_property
    def mean_row(self) -> torch.Tensor:
        """[D] float32, the mean of W over the vocabulary."""
        return torch.stack([block.weight.float().sum(0) for block in self.blocks()]).sum(0) / len(self.weight)


def large_head(model: nn.Module) -> nn.Linear | None:
    """Finds the head of a language model of a large vocabulary, where it alone leads from hidden states to logits, as
    far as is known; None for any other model."""
    head = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    large = isinstance(head, nn.Linear) and len(head.weight) > LARGE_VOCABULARY
    alone = getattr(model, "final_logits_bias", None) is None  # which BART and its like add to what the head gives
    return head if large and alone and head not in _CHANGED_AFTER else None


def without_head(model: nn.Module, inputs: Mapping[str, Any]) -> tuple[Any, Head] | None:
    """Runs a language model up to its head.

    Args:
        model: Any model.
        inputs: Arguments of the forward pass.

    Returns:
        Its outputs, whose `logits` are the hidden states that the head would be given, and the head. None where the
        vocabulary is small, or where more than a linear head leads from hidden states to logits.
    """
    head = large_head(model)
    if head is None:
        return None
    given: list[torch.Tensor] = []

    def keep(hidden: torch.Tensor) -> torch.Tensor:
        given.append(hidden)
        return hidden

    with replaced({head: keep}):
        outputs = model(**inputs)
    if len(given) == 1 and given[0].shape == outputs.logits.shape and torch.equal(outputs.logits, given[0]):
        return outputs, Head(head.weight, head.bias)
    _CHANGED_AFTER.add(head)
    return None


_CHANGED_AFTER: WeakSet[nn.Linear] = WeakSet()  # heads whose logits the model scales or caps


class _Sum:
    """Sums over the vocabulary of e^z times something, [n] or [n, D] each, scaled by e^-m, m the largest z so far."""

    def __init__(self, rows: torch.Tensor, *shapes: tuple[int, ...]) -> None:
        self.largest = rows.new_full((len(rows),), -torch.inf, dtype=torch.float32)
        self.sums = [rows.new_zeros((len(rows), *shape), dtype=torch.float64) for shape in shapes]

    def weights(self, logits: torch.Tensor) -> torch.Tensor:
        """Gives e^(z - m) of a block, [n, v], and scales the sums so far down to the new m."""
        largest = torch.maximum(self.largest, logits.amax(1))
        scale = (self.largest - largest).exp().double().nan_to_num(0.0)  # the first time there is nothing to scale
        self.sums = [total * scale.view(-1, *[1] * (total.ndim - 1)) for total in self.sums]
        self.largest = largest
        return (logits - largest.unsqueeze(1)).exp_()

    def add(self, *parts: torch.Tensor) -> None:
        """Adds what a block has to each of the sums."""
        self.sums = [total + part.double() for total, part in zip(self.sums, parts, strict=True)]

    def log(self) -> torch.Tensor:
        """[n] float64, log sum e^z, where the first sum is that of e^(z - m)."""
        return self.largest.double() + self.sums[0].log()


class _SumWithToken(_Sum):
    """The sum of e^z, and the token of the largest z, [n] int64; -1 where a logit is NaN."""

    def __init__(self, rows: torch.Tensor) -> None:
        super().__init__(rows, ())
        self.token = rows.new_full((len(rows),), -1, dtype=torch.int64)

    def take(self, block: Block, logits: torch.Tensor) -> None:
        """Takes in a block, [n, v]."""
        before = self.largest
        self.add(self.weights(logits).sum(1))
        larger = (self.largest > before).nonzero().squeeze(1)  # few rows: a place takes 18 times as long as a maximum
        self.token[larger] = logits[larger].argmax(1) + block.tokens.start
        self.token.masked_fill_(self.largest.isnan(), -1)


class Said(NamedTuple):
    """What the logits of each position say, [n] each: log sum e^z float64, and the token of the largest logit, int64;
    -1 where a logit is NaN."""

    normaliser: torch.Tensor
    largest: torch.Tensor


class Compared(NamedTuple):
    """The same, KL(p || q) in nats, never negative, and log sum e^z0 of the dense model, float64."""

    normaliser: torch.Tensor
    largest: torch.Tensor
    divergence: torch.Tensor
    dense: torch.Tensor


class Sloped(NamedTuple):
    """KL(p || q) in nats, [n] float64, and its gradient by the hidden states of each position, [n, D] float32."""

    divergence: torch.Tensor
    slope: torch.Tensor


class Expected(NamedTuple):
    """What is drawn from and what is expected under the softmax of each position.

    Attributes:
        row: [n, D] float32, E_p[W_y], the mean row of the head.
        masses: [n, blocks] float32, log sum e^z over each block of tokens.
        normaliser: [n] float64, log sum e^z over all.
    """

    row: torch.Tensor
    masses: torch.Tensor
    normaliser: torch.Tensor


@torch.no_grad()
def said(head: Head, hidden: torch.Tensor) -> Said:
    """Reads the logits of hidden states, [n, D]; one product of n * V * D."""
    return _in_parts(Said, lambda rows: _said(head, rows), hidden)


@torch.no_grad()
def compared(head: Head, hidden: torch.Tensor, dense: torch.Tensor) -> Compared:
    """Compares hidden states with the dense model's, [n, D] each; two products of n * V * D.

    With d = z - z0 - c, c any number a position, KL(p || q) = log E_p[e^d] - E_p[d] = log(1 + e + x) - e where
    e = E_p[d] and x = E_p[e^d - 1 - d], whose terms are never negative (see `divergence.py`). d comes from the
    difference of the hidden states, and c takes out what moves all logits alike, so that small effects keep their
    digits.
    """
    return _in_parts(Compared, lambda rows, others: _compared(head, rows, others), hidden, dense)


@torch.no_grad()
def sloped(head: Head, hidden: torch.Tensor, dense: torch.Tensor) -> Sloped:
    """Compares hidden states, and says how the divergence changes with them; three products of n * V * D.

    The logits of a few positions are kept while the sums over the vocabulary are made: `KEPT` bytes of them at most.
    """
    rows = max(1, KEPT // (8 * len(head.weight)))
    return _in_parts(Sloped, lambda part, others: _sloped(head, part, others), hidden, dense, rows=rows)


@torch.no_grad()
def expected(head: Head, hidden: torch.Tensor) -> Expected:
    """Finds the mean row of the head under the softmax of hidden states, [n, D]; two products of n * V * D."""
    return _in_parts(Expected, lambda rows: _expected(head, rows), hidden)


@torch.no_grad()
def summary(head: Head, hidden: torch.Tensor) -> torch.Tensor:
    """Says of hidden states of the dense model, [n, D], what `diverged` needs: E_p[W_y] and log sum e^z0.

    Returns:
        [n, D + 1] float64; two products of n * V * D.
    """
    found = expected(head, hidden)
    return torch.cat([found.row.double(), found.normaliser.unsqueeze(1)], 1)


@torch.no_grad()
def diverged(head: Head, hidden: torch.Tensor, dense: torch.Tensor, said_of_dense: torch.Tensor) -> torch.Tensor:
    """Measures KL(p || q) from what has been said of the dense model: one product of n * V * D, for two of `compared`.

    The head is linear, so that KL(p || q) = log sum e^z - log sum e^z0 - E_p[W_y] (h - h0). Float32 leaves an error of
    about 1e-6 nats a position whatever the divergence, where `compared` keeps the digits of small ones.

    Args:
        dense: [n, D], h0.
        said_of_dense: Its `summary`.

    Returns:
        [n] float64, never negative.
    """
    change = hidden.double() - dense.double()
    grown = said(head, hidden).normaliser - said_of_dense[:, -1]
    return (grown - torch.linalg.vecdot(change, said_of_dense[:, :-1])).clamp(min=0)


@torch.no_grad()
def draw(head: Head, hidden: torch.Tensor, masses: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Draws a token from the softmax of each position, [n] int64: a block by its mass, then a token of the block.

    Args:
        hidden: [n, D] float32.
        masses: Those of `expected`.
        generator: On the device of the head.
    """
    # Broken outputs are drawn from as if they were not: what they give is no number all the same.
    which = torch.multinomial(masses.softmax(-1).nan_to_num(1.0), 1, generator=generator).squeeze(1)
    tokens = torch.zeros_like(which)
    for number, block in enumerate(head.blocks()):
        rows = (which == number).nonzero().squeeze(1)
        for part in rows.split(ROWS.get(hidden.device.type, ROWS["cpu"])):
            shares = block.logits(hidden[part]).softmax(-1).nan_to_num(1.0)
            tokens[part] = torch.multinomial(shares, 1, generator=generator).squeeze(1) + block.tokens.start
    return tokens


def _in_parts(made: Any, work: Any, *tensors: torch.Tensor, rows: int | None = None) -> Any:
    """Does a few positions at a time, `rows` at most; hidden states in float32."""
    size = min(ROWS.get(tensors[0].device.type, ROWS["cpu"]), rows or len(tensors[0]) or 1)
    parts = zip(*(tensor.split(size) for tensor in tensors), strict=True)
    done = [work(*(tensor.float() for tensor in part)) for part in parts]
    return made(*(torch.cat(columns) for columns in zip(*done, strict=True)))


def _said(head: Head, hidden: torch.Tensor) -> Said:
    total = _SumWithToken(hidden)
    for block in head.blocks():
        total.take(block, block.logits(hidden))
    return Said(total.log(), total.token)


def _compared(
    head: Head, hidden: torch.Tensor, dense: torch.Tensor, kept: list[tuple[torch.Tensor, torch.Tensor]] | None = None
) -> Compared:
    """Compares; `kept`, where it is given, gets z and d = z - z0 - c of each block, [n, v] each."""
    change = hidden - dense
    centre = (change @ head.mean_row).unsqueeze(1)
    total, of_dense = _SumWithToken(hidden), _Sum(dense, (), (), ())
    for block in head.blocks():
        logits, moved = block.logits(dense), block.moved(change)
        weights = of_dense.weights(logits)
        logits += moved  # z, from here on
        total.take(block, logits)
        moved -= centre
        of_dense.add(weights.sum(1), torch.linalg.vecdot(weights, moved), torch.linalg.vecdot(weights, excess(moved)))
        if kept is not None:
            kept.append((logits, moved))
    mass, first, second = of_dense.sums
    shift, normaliser, dense_normaliser = first / mass, total.log(), of_dense.log()
    divergence = torch.log1p(shift + second / mass) - shift
    if not (finite := divergence.isfinite()).all():  # e^d overflows; nothing cancels then
        large = normaliser - dense_normaliser - shift - centre.squeeze(1).double()
        divergence = torch.where(finite, divergence, large)
    return Compared(normaliser, total.token, divergence.clamp(min=0), dense_normaliser)


def _sloped(head: Head, hidden: torch.Tensor, dense: torch.Tensor) -> Sloped:
    kept: list[tuple[torch.Tensor, torch.Tensor]] = []
    found = _compared(head, hidden, dense, kept)
    centre = (hidden - dense) @ head.mean_row
    normaliser, of_dense = found.normaliser.float().unsqueeze(1), (found.dense.float() + centre).unsqueeze(1)
    slope = torch.zeros_like(hidden)
    for block, (logits, moved) in zip(head.blocks(), kept, strict=True):
        share_of_dense = moved.neg_().add_(logits).sub_(of_dense).exp_()
        slope += block.pulled_back(logits.sub_(normaliser).exp_().sub_(share_of_dense))
    return Sloped(found.divergence, slope)


def _expected(head: Head, hidden: torch.Tensor) -> Expected:
    total, masses = _Sum(hidden, (), (hidden.shape[1],)), []
    for block in head.blocks():
        logits = block.logits(hidden)
        masses.append(logits.logsumexp(1))
        weights = total.weights(logits)
        total.add(weights.sum(1), weights @ block.weight)
    mass, rows = total.sums
    return Expected((rows / mass.unsqueeze(1)).float(), torch.stack(masses, 1), total.log())
