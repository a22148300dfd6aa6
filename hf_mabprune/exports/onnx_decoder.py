"""Decoders in ONNX: one graph for a text and for the tokens after it, which takes and gives keys and values by layer.

Inputs and outputs bear the names that Optimum gives them: `past_key_values.I.key` and `.value` in, `present.I.key` and
`.value` out, I the number of the layer; a layer without an attention has none.

Shapes: B examples, T tokens, P tokens before them, V vocabulary; G key-value heads and Dh head size, each by layer.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from hf_mabprune.architectures.positions import max_positions

PAST, PRESENT = "past_key_values", "present"
TOKEN_INPUTS = ("input_ids", "attention_mask", "position_ids")
LENGTH_SCALED = ("dynamic", "longrope")  # rotary frequencies that change with the length of a text
TRACED = (2, 3, 5)  # B, P, T of the example that is traced
COMPARED = ((1, 1, 5), (3, 9, 7), (2, 15, 1))
AXES = {  # what varies, by place
    "input_ids": {0: "batch_size", 1: "sequence_length"},
    "attention_mask": {0: "batch_size", 1: "total_sequence_length"},
    "position_ids": {0: "batch_size", 1: "sequence_length"},
    PAST: {0: "batch_size", 2: "past_sequence_length"},
}
Run = Callable[..., Any]


def check_decoder(model: PreTrainedModel, export: str) -> None:
    """Refuses decoders that keep something else than keys and values, or read a long text another way than a short.

    Args:
        export: Name of the export, for messages.
    """
    name = type(model).__name__
    for number, layer in enumerate(DynamicCache(config=model.config).layers):
        if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer):
            raise ValueError(
                f"export {export} writes decoders that keep keys and values alone, got {name}, whose layer {number} "
                f"keeps other states, in a {type(layer).__name__}"
            )
    scaling = (getattr(model.config, "rope_parameters", None) or {}).get("rope_type")
    if scaling in LENGTH_SCALED:
        raise ValueError(
            f"export {export} writes one graph for all lengths, got {name}, whose rotary frequencies change with the "
            f"length (rope_type {scaling})"
        )


class DecoderGraph(nn.Module):
    """Gives logits [B, T, V], and keys and values [B, G, P + T, Dh] of every layer that keeps any.

    Everything is kept, by layers with a sliding window too: the window is in their masks, which makes it exact.

    Attributes:
        inputs: Names of what `forward` takes, in order; of them the mask is [B, P + T].
        names: Names of what it gives.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model, self.caches = model, _caches_of(model)
        taken = inspect.signature(model.forward).parameters
        self.inputs = [name for name in TOKEN_INPUTS if name in taken] + self._states(PAST)
        self.names = ["logits", *self._states(PRESENT)]
        self.eval()

    def _states(self, prefix: str) -> list[str]:
        return [f"{prefix}.{layer}.{kind}" for layer in self.caches for kind in ("key", "value")]

    def example(self) -> dict[str, torch.Tensor]:
        """Makes the inputs that are traced."""
        examples, past, tokens = TRACED
        text = _text(self.model, examples, past + tokens)
        text = {"input_ids": text["input_ids"][:, past:], "attention_mask": text["attention_mask"]}
        shapes = [shape for pair in self.caches.values() for shape in pair]
        empty = {
            name: torch.zeros(examples, heads, past, size)
            for name, (heads, size) in zip(self._states(PAST), shapes, strict=True)
        }
        given = beside_ids({**text, **empty}, {})
        return {name: given[name] for name in self.inputs}

    def axes(self) -> tuple[dict[int, str], ...]:
        """Says which places of the inputs vary."""
        return tuple(AXES[name.partition(".")[0]] for name in self.inputs)

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        given, cache = dict(zip(self.inputs, inputs, strict=True)), DynamicCache()
        for layer in self.caches:
            cache.update(given.pop(f"{PAST}.{layer}.key"), given.pop(f"{PAST}.{layer}.value"), layer)
        logits = self.model(**given, past_key_values=cache, use_cache=True).logits
        layers: Any = cache.layers
        kept = (layers[layer] for layer in self.caches)
        return logits, *(states for layer in kept for states in (layer.keys, layer.values))

    def comparisons(self, run: Run) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Gives logits of the graph, which reads each text in two passes, and of the model, which reads it in one.

        The first text is padded on the left; padding is left out.
        """
        for examples, past, tokens in COMPARED:
            length = min(past + tokens, max_positions(self.model.config))
            text = _text(self.model, examples, length)
            given = {name: tensor for name, tensor in beside_ids(text, {}).items() if name in self.inputs}
            own, counted = self.model(**given, use_cache=False).logits, text["attention_mask"].bool()
            yield in_two_passes(run, text, min(past, length - 1))[counted], own[counted]


@contextmanager
def writable_experts(model: PreTrainedModel) -> Iterator[None]:
    """Lets experts run as batched products, which the exporter writes, not as grouped ones, which it does not."""
    experts = getattr(model.config, "_experts_implementation", None)
    if experts != "grouped_mm":
        yield
        return
    model.set_experts_implementation("batched_mm")
    try:
        yield
    finally:
        model.set_experts_implementation(experts)


def in_two_passes(run: Run, text: Mapping[str, torch.Tensor], first: int) -> torch.Tensor:
    """Gives the logits [B, T, V] of a text that is read in two passes, the second with what the first one kept.

    Args:
        run: Runs a decoder's graph.
        text: `input_ids` and `attention_mask`, [B, T].
        first: Tokens of the first pass.
    """
    ids, mask = text["input_ids"], text["attention_mask"]
    begun = run(input_ids=ids[:, :first], attention_mask=mask[:, :first])
    kept = {name.replace(PRESENT, PAST): states for name, states in begun.items() if name.startswith(PRESENT)}
    ended = run(input_ids=ids[:, first:], attention_mask=mask, **kept)
    return torch.cat([begun["logits"], ended["logits"]], 1)


def beside_ids(inputs: Mapping[str, torch.Tensor], states: Mapping[str, list[Any]]) -> dict[str, torch.Tensor]:
    """Adds to token ids what else a decoder's graph takes: a mask, positions counted from the first token on that is
    no padding, and no keys and values.

    Args:
        inputs: Inputs by name; what is there stays.
        states: Name of keys or values -> shape, [B, G, P, Dh].
    """
    ids = inputs["input_ids"]
    mask = inputs.get("attention_mask", torch.ones_like(ids))
    positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
    empty = {name: torch.zeros(len(ids), heads, 0, size) for name, (_, heads, _, size) in states.items()}
    return {"attention_mask": mask, "position_ids": positions, **empty, **inputs}


@torch.no_grad()
def _caches_of(model: PreTrainedModel) -> dict[int, tuple[tuple[int, int], tuple[int, int]]]:
    """Finds out what each layer keeps, from what it keeps of two tokens: layer -> [G, Dh] of keys and of values."""
    cache = DynamicCache()
    model(**_text(model, 1, 2), past_key_values=cache, use_cache=True)
    layers: Any = cache.layers
    kept = {number: (layer.keys, layer.values) for number, layer in enumerate(layers)}
    return {
        number: ((keys.shape[1], keys.shape[3]), (values.shape[1], values.shape[3]))
        for number, (keys, values) in kept.items()
        if keys is not None and values is not None
    }


def _text(model: PreTrainedModel, examples: int, length: int) -> dict[str, torch.Tensor]:
    """Makes token ids and a mask, [examples, length]; the first of several texts is padded on the left."""
    ids = torch.arange(examples * length).view(examples, length) * 7 % model.config.vocab_size
    mask = torch.ones_like(ids)
    mask[0, : length // 3 if examples > 1 else 0] = 0
    return {"input_ids": ids, "attention_mask": mask}
