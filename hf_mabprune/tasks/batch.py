"""A batch, and what can be said of it without a model.

Symbols: B examples in a batch; S sequences of an example (the choices of a multiple choice, else 1); T tokens, padding
included.
"""

import torch

# Name of a model input, or `labels` -> its values: [B, T], or [B, S, T] where a head chooses among sequences.
Batch = dict[str, torch.Tensor]


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Gives the batch on a device; tensors that are there already are not copied."""
    return {name: tensor.to(device) for name, tensor in batch.items()}


def sequences_of(batch: Batch) -> int:
    """Counts the sequences S that the model reads for each example: the choices of a multiple choice, else 1."""
    return batch["input_ids"].shape[1:-1].numel()


def tokens_of(batch: Batch) -> int:
    """Counts the positions of input, B * S * T, padding included: what a forward pass is paid for."""
    return batch["input_ids"].numel()


def counted_positions(batch: Batch) -> torch.Tensor:
    """Tells tokens from padding, [B * S, T] bool, a row for each sequence; all count where nothing is padded."""
    counted = batch.get("attention_mask", torch.ones_like(batch["input_ids"]))
    return counted.reshape(-1, counted.shape[-1]).bool()
