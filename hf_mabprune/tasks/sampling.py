"""How a data set becomes batches: drawn with a seed, encoded, collated, and split into parts of like lengths."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray

from hf_mabprune.config import TaskConfig
from hf_mabprune.data.columns import RowError
from hf_mabprune.data.splits import draw, drawn_rows
from hf_mabprune.errors import OutsideError, in_words
from hf_mabprune.progress import stage
from hf_mabprune.tasks.base import Task
from hf_mabprune.tasks.batch import LABELS, Batch
from hf_mabprune.tasks.readout import some_targets

MOST_PARTS = 4  # that a batch is split into


@stage("reading data")
def encode_sample(task: Task, dataset: Dataset, count: int | None, seed: int, further: int = 0) -> Dataset:
    """Encodes at most `count` examples, drawn with `seed`; None encodes all, in order.

    Where an example is a row, rows are drawn first, so that nothing is tokenised in vain; windows of a language model
    are drawn after they are cut.

    Args:
        further: Examples that are drawn beside them, as many as there are; they come after them.

    Raises:
        ValueError: If a row cannot be encoded; the message names the split and the row.
    """
    split = f"split '{dataset.split or 'data'}'"

    try:
        if task.draws_rows(dataset):
            return task.encode(draw(dataset, count, seed, further))
        return draw(task.encode(dataset), count, seed, further)
    except RowError as error:
        row = error.row if count is None else int(drawn_rows(len(dataset), count, seed, further)[error.row])
        raise ValueError(f"{split}: {RowError(error.message, row)}") from error
    except ValueError:
        raise
    except Exception as error:
        raise OutsideError(f"{split} cannot be encoded: {in_words(error)}") from error


@dataclass(frozen=True)
class LazyBatches(Sequence[Batch]):
    """Collates a batch each time it is read, and keeps none: pixels of a split may take more memory than there is.

    Args:
        task: Task that the examples were encoded by.
        encoded: Encoded examples.
        batch_size: Examples in a batch; the last one may be shorter.
    """

    task: Task
    encoded: Dataset
    batch_size: int

    def __len__(self) -> int:
        return math.ceil(len(self.encoded) / self.batch_size)

    @overload
    def __getitem__(self, index: int) -> Batch: ...

    @overload
    def __getitem__(self, index: slice) -> list[Batch]: ...

    def __getitem__(self, index: int | slice) -> Batch | list[Batch]:
        if isinstance(index, slice):
            return [self[number] for number in range(len(self))[index]]
        start = range(len(self))[index] * self.batch_size
        columns = self.encoded[start : start + self.batch_size]
        return self.task.collate([dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)])


def batches_of(
    task: Task, encoded: Dataset, batch_size: int, equal: bool = False, by_length: bool = False
) -> Sequence[Batch]:
    """Collates encoded examples into batches on the CPU, in order; where they are large, each time one is asked for.

    Args:
        task: Task that the examples were encoded by.
        encoded: Encoded examples.
        batch_size: Examples in a batch.
        equal: Whether to leave out a last batch that is shorter than the others, so that means over batches weigh all
            examples alike. A single short batch stays.
        by_length: Whether to go from the shortest example to the longest, so that little is padded.

    Raises:
        ValueError: If there are no examples.
    """
    if not len(encoded):
        raise ValueError("a batch takes at least one example, got none; choose a larger slice")
    if by_length:
        encoded = encoded.select(length_order(task, encoded))
    if equal and len(encoded) > batch_size:
        encoded = encoded.select(range(len(encoded) - len(encoded) % batch_size))
    batches = LazyBatches(task, encoded, batch_size)
    return batches if task.batches_are_large else list(batches)


def evaluation_batches(settings: TaskConfig, task: Task, dataset: Dataset, seed: int) -> Sequence[Batch]:
    """Draws what a model is measured on, from the shortest example to the longest.

    Args:
        settings: Task settings: how many examples, and tokens of each, count.
        task: Task that reads them.
        dataset: Validation or test split.
        seed: Of the draws.

    Raises:
        ValueError: As `encode_sample`.
    """
    encoded = encode_sample(task, dataset, settings.evaluation_examples, seed)
    return evaluation_batches_of(settings, task, encoded, seed)


def evaluation_batches_of(settings: TaskConfig, task: Task, encoded: Dataset, seed: int) -> Sequence[Batch]:
    """Makes those batches of the encoded draw, whose order becomes that of `length_order`."""
    return thinned(batches_of(task, encoded, settings.batch_size, by_length=True), settings.evaluation_positions, seed)


def length_order(task: Task, encoded: Dataset) -> NDArray[np.int64]:
    """Gives the numbers of encoded examples from the shortest to the longest, [N]; of equals the first one first."""
    return np.argsort(task.lengths(encoded), kind="stable")


def thinned(batches: Sequence[Batch], positions: int | None, seed: int) -> Sequence[Batch]:
    """Leaves so many tokens of each example to count, drawn from those that do; the model reads all of them.

    Args:
        batches: Of a task that predicts tokens, where some are left out.
        positions: Tokens of an example that count at most; None leaves all.
        seed: Of the draw.
    """
    if positions is None:
        return batches
    draws = (torch.Generator().manual_seed(seed + number) for number in range(len(batches)))
    return [
        Batch({**batch, LABELS: some_targets(batch[LABELS], positions, draw)})
        for batch, draw in zip(batches, draws, strict=True)
    ]


def split_by_length(batch: Batch, parts: int = MOST_PARTS) -> list[Batch]:
    """Sorts the examples of a batch by length and splits them into equal parts, each cut to its longest sequence.

    A batch that is padded on the left, or hardly at all, or has two kinds of sequences, stays as it is.

    Args:
        batch: Batch to split, on any device.
        parts: Largest number of parts.
    """
    attention = batch.get("attention_mask")
    if attention is None or "decoder_input_ids" in batch or not bool(attention[..., 0].all()):
        return [batch]
    lengths = attention.sum(-1).reshape(len(attention), -1).amax(1).cpu()
    order = torch.argsort(lengths, stable=True)
    chunks = [chunk for chunk in np.array_split(order.numpy(), min(parts, len(order))) if len(chunk)]
    padded = sum(len(chunk) * int(lengths[chunk].max()) for chunk in chunks)
    width = attention.shape[-1]
    if padded > 0.9 * len(order) * width:
        return [batch]

    def cut(tensor: torch.Tensor, rows: NDArray[np.int64]) -> torch.Tensor:
        picked = tensor[torch.as_tensor(rows, device=tensor.device)]
        along = tensor.ndim > 1 and tensor.shape[-1] == width and not tensor.is_floating_point()
        return picked[..., : int(lengths[rows].max())] if along else picked

    return [Batch((name, cut(tensor, rows)) for name, tensor in batch.items()) for rows in chunks]
