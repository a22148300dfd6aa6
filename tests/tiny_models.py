"""Tiny random models of every supported type and head, from configs: no network, milliseconds each."""

import inspect
from collections.abc import Iterable
from functools import cache
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from hf_mabprune.architectures import ARCHITECTURES, Site, architecture_of
from hf_mabprune.arms import Ints
from hf_mabprune.checkpoints import modeling_pruned
from tests.seeds import moved
from tests.tiny_sizes import GROUPED, OF_TYPE, VOCABULARY

COUNTS = ("num_hidden_layers", "num_layers", "n_layers", "n_layer", "layers")
NOTHING = np.empty(0, dtype=np.int64)  # keep indices of a block that goes whole


def tiny_config(model_type: str, **changes: object) -> PretrainedConfig:
    """Hidden size 32, 2 layers (a stack), 48 neurons, 4 heads; two heads share keys and values where that can be."""
    return AutoConfig.for_model(model_type, **{**OF_TYPE.get(model_type, GROUPED), **changes})


def tiny_model(model_type: str, auto_class: str, **changes: object) -> PreTrainedModel:
    """A random model, in evaluation mode, whose biases are not zero (a cut bias must be seen)."""
    torch.manual_seed(moved(0))
    config = tiny_config(model_type, **changes)
    model = modeling_pruned.auto_classes(type(config))[auto_class][0](config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:  # tables that are made anew when a model is read are not
                parameter.add_(0.05 * torch.randn_like(parameter))
        for name, tensor in model.state_dict().items():
            if name.endswith("e_score_correction_bias"):  # which routers choose by
                tensor.add_(0.1 * torch.rand_like(tensor))
    return model.eval()


def deep_model(model_type: str, auto_class: str = "", layers: int = 4) -> PreTrainedModel:
    """A tiny model of so many layers, a stack; where they are of two kinds, these take turns."""
    return tiny_model(model_type, auto_class or head_of(model_type), **deeper(model_type, layers))


def deeper(model_type: str, layers: int = 4) -> dict[str, object]:
    """What a config says of so many layers, a stack."""
    sizes = OF_TYPE.get(model_type, GROUPED)
    counts = {name: layers for name in sizes if name.removeprefix("encoder_").removeprefix("decoder_") in COUNTS}
    changes: dict[str, object] = {**counts, **_turns(sizes, layers)}
    for name, part in sizes.items():
        if isinstance(part, dict) and "num_hidden_layers" in part:
            changes[name] = {**part, "num_hidden_layers": layers, **_turns(part, layers)}
    return changes


def _turns(sizes: dict[str, Any], layers: int) -> dict[str, object]:
    types = sizes.get("layer_types", [])
    return {"layer_types": [types[number % len(types)] for number in range(layers)]} if types else {}


@cache
def heads_of(model_type: str) -> tuple[str, ...]:
    """Every AutoModel class that builds this type."""
    return tuple(sorted(modeling_pruned.auto_classes(type(tiny_config(model_type)))))


def every_type_and_head() -> list[tuple[str, str]]:
    """All supported model types with all their AutoModel heads."""
    return [(model_type, head) for model_type in ARCHITECTURES.names() for head in heads_of(model_type)]


SEEN_OR_HEARD = ("SpeechSeq2Seq", "ImageClassification", "AudioClassification")


def head_of(model_type: str) -> str:
    """The AutoModel class that a type is best known for, among those that say something of an example."""
    heads = heads_of(model_type)
    first = ["AutoModelForSeq2SeqLM"] if tiny_config(model_type).is_encoder_decoder else []
    first += [f"AutoModelFor{name}" for name in (*SEEN_OR_HEARD, "ImageTextToText")]
    first += ["AutoModelForSequenceClassification"] if "AutoModelForMaskedLM" in heads else []
    return next(head for head in (*first, "AutoModelForCausalLM", "AutoModel") if head in heads)


def inputs_for(model: PreTrainedModel, auto_class: str = "", seed: int = 0) -> dict[str, torch.Tensor]:
    """Two examples: sequences of 9 tokens, the second padded, with one end of sequence each; images; sound.

    [B, choices, T] for multiple choice; besides, 5 tokens for a decoder that reads an encoder.
    """
    generator = torch.Generator().manual_seed(moved(seed))
    ids = torch.randint(3, VOCABULARY, (2, 9), generator=generator)
    attention = torch.ones_like(ids)
    ids[1, 6:], attention[1, 6:] = 0, 0
    ids[0, 8], ids[1, 5] = 2, 2
    if auto_class == "AutoModelForMultipleChoice":
        ids, attention = ids[:, None].repeat(1, 2, 1), attention[:, None].repeat(1, 2, 1)
    inputs = {
        "input_ids": ids,
        "attention_mask": attention,
        "pixel_values": torch.rand(2, 3, 16, 16, generator=generator),
        "input_values": torch.randn(2, 128, generator=generator),
        "input_features": torch.randn(2, 8, 40, generator=generator),
    }
    taken = set(inspect.signature(model.forward).parameters)
    if "input_ids" in taken and not hasattr(model.config, "projection_dim"):
        taken -= {"pixel_values"}  # of a language model that images may be shown to
    inputs = {name: tensor for name, tensor in inputs.items() if name in taken}
    if "input_ids" not in inputs:  # of an image or of sound all counts
        inputs.pop("attention_mask", None)
    if model.config.is_encoder_decoder and not auto_class.endswith("Classification"):
        inputs["decoder_input_ids"] = torch.randint(3, VOCABULARY, (2, 5), generator=generator)
    return inputs


def outputs_of(model: PreTrainedModel, auto_class: str = "") -> torch.Tensor:
    """Every floating-point output of one forward pass, flattened."""
    with torch.no_grad():
        outputs = model(**inputs_for(model, auto_class))
    tensors = [value for value in outputs.to_tuple() if isinstance(value, torch.Tensor) and value.is_floating_point()]
    return torch.cat([tensor.flatten() for tensor in tensors])


def site_of(model: PreTrainedModel, kind: str, layer: int) -> Site:
    """The first site of a kind in a layer, counted through all stacks."""
    sites = architecture_of(model).sites(model)
    return next(site for site in sites if site.kind == kind and site.depth == layer)


def keep_of(
    model: PreTrainedModel,
    neurons: dict[int, Iterable[int]] | None = None,
    heads: dict[int, Iterable[int]] | None = None,
) -> dict[str, Ints]:
    """Keep indices by layer, for models with one such site a layer."""
    given = {"neuron": neurons or {}, "head": heads or {}}
    return {
        site_of(model, kind, layer).name: np.array(list(units), dtype=np.int64)
        for kind, layers in given.items()
        for layer, units in layers.items()
    }


def keep_for(
    model: PreTrainedModel, layout: str, seed: int = 0, kinds: Iterable[str] = ("neuron", "head", "expert")
) -> dict[str, Ints]:
    """A random selection: half of neurons and of heads, the same counts in each layer only under `uniform`.

    Experts of a layer keep one width, a multiple of 8, and under `uniform` those of all layers do.
    """
    rng = np.random.default_rng(moved(seed))
    keep: dict[str, Ints] = {}
    widths: dict[str | None, int] = {}
    sites = architecture_of(model).sites(model)
    with_experts = {site.field for site in sites if site.tie} if layout == "uniform" else set()
    for site in sites:
        if site.kind not in kinds:
            continue
        groups = site.units // site.group
        least = max(1, architecture_of(model).least_units(model, site) // site.group)
        count = max(least, groups // 2) if layout == "uniform" else int(rng.integers(least, max(groups, least + 1)))
        if site.tie or site.field in with_experts:
            count = widths.setdefault(None if layout == "uniform" else site.tie, max(8, count // 8 * 8))
        kept = np.sort(rng.choice(groups, count, replace=False))
        keep[site.name] = (kept[:, None] * site.group + np.arange(site.group)).ravel()
    return keep


def without_last(model: PreTrainedModel) -> dict[str, Ints]:
    """Keep indices without the last FFN, and without the last attention where that may go in two layers."""
    sites = [site_of(model, kind, 1) for kind in ("head", "neuron")]
    return {site.name: NOTHING for site in sites if not architecture_of(model).least_units(model, site)}
