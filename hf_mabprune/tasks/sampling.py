"""How a data set becomes batches: drawn with a seed, encoded, collated, and split into parts of like lengths."""

from typing import Any

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray

from hf_mabprune.data.splits import draw
from hf_mabprune.tasks.base import Task
from hf_mabprune.tasks.batch import Batch

MOST_PARTS = 4  # that a batch is split into


def encode_sample(task: Task, dataset: Dataset, count: int | None, seed: int) -> Dataset:
    """Encodes at most `count` examples, drawn with `seed`; None encodes all, in order.

    Where an example is a row, rows are drawn first, so that nothing is tokenised in vain; windows of a language model
    are drawn after they are cut.
    """
    if task.rows_are_examples:
        return task.encode(draw(dataset, count, seed))
    return draw(task.encode(dataset), count, seed)


def batches_of(
    task: Task, encoded: Dataset, batch_size: int, equal: bool = False, by_length: bool = False
) -> list[Batch]:
    """Collates encoded examples into batches on the CPU, in order.

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
        encoded = encoded.select(np.argsort([_length(ids) for ids in encoded["input_ids"]], kind="stable"))
    drop = equal and len(encoded) > batch_size
    return [
        task.collate([dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)])
        for columns in encoded.iter(batch_size, drop_last_batch=drop)
    ]


def split_by_length(batch: Batch, parts: int = MOST_PARTS) -> list[Batch]:
    """Sorts the examples of a batch by length and splits them into equal parts, each cut to its longest sequence.

    A batch that is padded on the left, or hardly at all, stays as it is.

    Args:
        batch: Batch to split, on any device.
        parts: Largest number of parts.
    """
    attention = batch.get("attention_mask")
    if attention is None or not bool(attention[..., 0].all()):
        return [batch]
    lengths = attention.sum(-1).reshape(len(attention), -1).amax(1).cpu()
    order = torch.argsort(lengths, stable=True)
    chunks = [chunk for chunk in np.array_split(order.numpy(), min(parts, len(order))) if len(chunk)]
    padded = sum(len(chunk) * int(lengths[chunk].max()) for chunk in chunks)
    width = batch["input_ids"].shape[-1]
    if padded > 0.9 * len(order) * width:
        return [batch]

    def cut(name: str, tensor: torch.Tensor, rows: NDArray[np.int64]) -> torch.Tensor:
        picked = tensor[torch.as_tensor(rows, device=tensor.device)]
        along = tensor.ndim > 1 and tensor.shape[-1] == width and not tensor.is_floating_point()
        return picked[..., : int(lengths[rows].max())] if along else picked

    return [{name: cut(name, tensor, rows) for name, tensor in batch.items()} for rows in chunks]


def _length(ids: list[Any]) -> int:
    """Counts the tokens of an example, or of the longest of its sequences."""
    return max(map(len, ids)) if isinstance(ids[0], list) else len(ids)
