"""What targets are of beside counts of units, parameters and MACs: bytes on disk, memory, and time."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from accelerate import Accelerator
from transformers import PreTrainedModel

from hf_mabprune.arms import ArmTable
from hf_mabprune.checkpoints.processors import Processor
from hf_mabprune.config import PruningConfig, TargetConfig
from hf_mabprune.quantities.latency import compared, latency_of
from hf_mabprune.quantities.memory import memory_bytes, memory_of
from hf_mabprune.quantities.stored import stored_of
from hf_mabprune.selection.target import Quantity

__all__ = ["AtHand", "achieved", "conditions", "quantities_of"]


class AtHand(NamedTuple):
    """What a model is timed with.

    Attributes:
        example: Inputs of one example.
        processor: Tokenizer or processor of the model.
        accelerator: Processes of the launch.
    """

    example: Mapping[str, torch.Tensor]
    processor: Processor
    accelerator: Accelerator


def quantities_of(
    model: PreTrainedModel, arms: ArmTable, prune: PruningConfig, dtype: torch.dtype, refitted: bool, at_hand: AtHand
) -> dict[str, Quantity]:
    """Measures what a target is of, where a table of arms does not say it.

    Args:
        model: Dense model.
        arms: All arms of the model.
        prune: Settings with the target.
        dtype: Precision of saved weights.
        refitted: Whether what stays is refitted, which may add biases.
        at_hand: What the model is timed with.

    Returns:
        Name in the target -> quantity; nothing where units, parameters or MACs are meant.

    Raises:
        ValueError: If the model has no such quantity.
    """
    target = prune.target
    if target.bytes is not None:
        return {"bytes": stored_of(model, arms, dtype, refitted)}
    if target.memory is not None:
        return {"memory": memory_of(model, arms, target.memory, dtype, refitted)}
    if target.latency is not None:
        return {"latency": latency_of(model, arms, prune, *at_hand)}
    return {}


def achieved(
    target: TargetConfig,
    before: float,
    dense: PreTrainedModel,
    small: PreTrainedModel,
    dtype: torch.dtype,
    at_hand: AtHand,
) -> float | None:
    """Measures what a pruned model has of what the target is of; None for what only its files show.

    Args:
        target: What was to be removed.
        before: What the dense model has; of time, what the table says, which the ratio of both models is taken of.
        dense: Dense model.
        small: Pruned model.
        dtype: Precision of saved weights.
        at_hand: What both are timed with.
    """
    if target.latency is not None:
        return before * compared(dense, small, target.latency, at_hand.example, at_hand.processor)
    return memory_bytes(small, target.memory, dtype) if target.memory is not None else None


def conditions(target: TargetConfig) -> str:
    """Says in words what a target is of, and under which conditions: memory, batch 1, length 128."""
    said = list(target.amounts())
    if options := target.memory or target.latency:
        given = options.model_dump(exclude={"amount"}, exclude_none=True)
        said += [f"{name} {value}" for name, value in given.items()]
    return ", ".join(said)
