"""Memory that a loaded model takes: its weights, and the keys and values that a decoder keeps of a sequence.

Symbols: B sequences; T tokens of each; G key-value heads; n arms of a site.
"""

from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel

from hf_mabprune.arms import LAYER, ArmTable
from hf_mabprune.config import MemoryTarget
from hf_mabprune.quantities.stored import new_biases
from hf_mabprune.selection.target import Quantity

TOKENS = 2  # of the sequence that shows what is kept


@dataclass(frozen=True)
class Cache:
    """What one layer keeps of a sequence.

    Attributes:
        heads: Key-value heads that keep something, G.
        numbers: Of all of them, for each token.
        most: Tokens that are kept at most; None where there is no such number.
    """

    heads: int
    numbers: int
    most: int | None

    def bytes(self, asked: MemoryTarget, dtype: torch.dtype) -> float:
        """Counts the bytes of so many sequences of such a length."""
        assert asked.length is not None
        tokens = asked.length if self.most is None else min(asked.length, self.most)
        return float(asked.batch * tokens * self.numbers * dtype.itemsize)


def memory_of(
    model: PreTrainedModel, arms: ArmTable, asked: MemoryTarget, dtype: torch.dtype, refitted: bool
) -> Quantity:
    """Counts the bytes of weights, keys and values in memory, and those that go with each arm.

    Args:
        model: Dense model.
        arms: All arms of the model.
        asked: How many sequences, of which length.
        dtype: Precision that the checkpoint is saved and loaded in.
        refitted: Whether what stays is refitted, which may add biases.

    Raises:
        ValueError: If the model is an encoder-decoder, a decoder without a length, or keeps nothing and has one.
    """
    cost = arms.parameters.astype(float) * dtype.itemsize
    caches, besides = caches_of(model, asked), {}
    for site, rows in arms.groups():
        cache = caches.get(int(arms.layer[rows[0]]))
        if cache is None or arms.kind[rows[0]] not in ("head", LAYER):
            continue
        kept = cache.bytes(asked, dtype)
        if cache.heads % len(rows) == 0:
            cost[rows] += kept / len(rows)
        else:  # heads of queries alone: keys and values go with the last one
            besides[site] = np.array([kept, *np.zeros(len(rows))])
    added = sum(new_biases(model, arms).values()) * dtype.itemsize if refitted else 0
    return Quantity(memory_bytes(model, asked, dtype), cost, dtype.itemsize, besides, "B", added)


def memory_bytes(model: PreTrainedModel, asked: MemoryTarget, dtype: torch.dtype) -> float:
    """Counts the bytes of a model's weights in memory, and of the keys and values that it keeps.

    Args:
        model: Dense or pruned model.
        asked: How many sequences, of which length.
        dtype: Precision that it is loaded in.

    Raises:
        ValueError: As `memory_of`.
    """
    weights = sum(parameter.numel() for parameter in model.parameters()) * dtype.itemsize
    buffers = sum(buffer.numel() * buffer.element_size() for buffer in model.buffers())
    return weights + buffers + sum(cache.bytes(asked, dtype) for cache in caches_of(model, asked).values())


@torch.no_grad()
def caches_of(model: PreTrainedModel, asked: MemoryTarget) -> dict[int, Cache]:
    """Finds out what each layer keeps, from what it keeps of a short sequence: number of the layer -> cache.

    Raises:
        ValueError: As `memory_of`.
    """
    name = model.config.model_type
    if model.config.is_encoder_decoder:
        raise ValueError(f"target.memory is for encoders and decoders, and {name} is both: set target.bytes instead")
    kept = None
    if model.can_generate():
        ids = torch.zeros(1, TOKENS, dtype=torch.long, device=model.device)
        kept = model(input_ids=ids, use_cache=True).get("past_key_values")
    if kept is None:
        if asked.length is not None:
            raise ValueError(
                f"target.memory.length is for decoders, and {name} keeps no keys and values: leave it out"
            )
        return {}
    if asked.length is None:
        raise ValueError("target.memory.length must say of how many tokens keys and values are kept, e.g. 2048")
    caches = {}
    for number, layer in enumerate(kept.layers):
        keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
        if keys is not None and values is not None and keys.numel():
            window = layer.sliding_window - 1 if getattr(layer, "is_sliding", False) else None
            caches[number] = Cache(keys.shape[1], (keys.numel() + values.numel()) // keys.shape[-2], window)
    return caches
