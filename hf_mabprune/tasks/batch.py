"""A batch, and what can be said of it without a model.

Symbols: B examples in a batch; S sequences of an example (the choices of a multiple choice, else 1); T tokens, padding
included.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

IDS = ("input_ids", "decoder_input_ids")
LABELS = "labels"


class Batch(dict[str, torch.Tensor]):
    """Maps the name of a model input, or `labels`, to its values, with the examples along the first dimension.

    Inputs may be token ids [B, T], or [B, S, T] where a head chooses among sequences, images [B, channels, height,
    width], rows of a table [B, features], or anything else that a model takes.
    """

    @property
    def examples(self) -> int:
        """Counts the examples, B."""
        return len(next(iter(self.values())))

    @property
    def sequences(self) -> int:
        """Counts the sequences S that the model reads for each example: the choices of a multiple choice, else 1."""
        return self["input_ids"].shape[1:-1].numel() if "input_ids" in self else 1

    @property
    def tokens(self) -> int:
        """Counts what a forward pass is paid for: token ids, padding included; examples, where there are no tokens."""
        return sum(self[name].numel() for name in IDS if name in self) or self.examples

    @property
    def length(self) -> int:
        """Counts the tokens of the longest sequence, T; 0 where there are no tokens."""
        return self["input_ids"].shape[-1] if "input_ids" in self else 0

    def to(self, device: torch.device) -> "Batch":
        """Gives the batch on a device; tensors that are there already are not copied."""
        return Batch((name, tensor.to(device)) for name, tensor in self.items())

    def rows(self, index: Any) -> "Batch":
        """Picks examples by a slice, or by their numbers."""
        return Batch((name, tensor[index]) for name, tensor in self.items())

    def repeated(self, times: int) -> "Batch":
        """Puts so many copies of all examples one after the other, [times * B, ...]."""
        return Batch((name, tensor.repeat(times, *[1] * (tensor.ndim - 1))) for name, tensor in self.items())

    def counted(self, flag: str, hidden: torch.Tensor) -> torch.Tensor:
        """Tells positions that count from padding, [B * S, T] bool.

        Args:
            flag: Input that is 1 where a position counts; all count where the batch has no such input.
            hidden: [B * S, T, ...], what a module of the model sees at these positions.
        """
        counted = self.get(flag)
        if counted is None:
            return torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
        return counted.reshape(-1, counted.shape[-1]).bool()


def typical_example(batches: Sequence[Batch], length: int | None = None) -> Batch:
    """Makes up inputs of one example, or one of its sequences, as large as those of some batches are on average.

    Args:
        batches: What its inputs and their sizes are like.
        length: Length of token inputs, where it is not to be the mean.

    Returns:
        Batch of one, without labels, on the CPU. No position of it is padding.
    """
    example = Batch()
    for name, tensor in batches[0].items():
        if name == LABELS:
            continue
        if tensor.is_floating_point() or tensor.ndim == 1:
            example[name] = torch.zeros_like(tensor[:1], device="cpu")
            continue
        mean = int(np.mean([batch[name].shape[-1] for batch in batches]))
        size = mean if length is None or name.startswith("decoder") else length
        first = tensor.flatten(0, -2)[0].cpu()
        if name in IDS:
            flag = batches[0].get(name.replace("input_ids", "attention_mask"))
            tokens = first if flag is None else first[flag.flatten(0, -2)[0].bool().cpu()]
            first = tokens[torch.linspace(0, len(tokens) - 1, size).long()]  # stretched, from the first to the last
        else:
            first = torch.full((size,), int(name.endswith("mask")), dtype=first.dtype)
        example[name] = first.view(*[1] * (tensor.ndim - 1), size)
    return example
