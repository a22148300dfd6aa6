"""Tiny random models of every supported type and head, from configs: no network, milliseconds each."""

import numpy as np
import torch
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from hf_mabprune.architectures import ARCHITECTURES, architecture_of
from hf_mabprune.arms import KeepIndices
from hf_mabprune.checkpoints import modeling_pruned
from tests.seeds import moved

LAYERS, WIDTH, HEADS, VOCABULARY = 2, 48, 4, 64


def tiny_config(model_type: str, **changes: object) -> PretrainedConfig:
    """Hidden size 32, 2 layers, 48 neurons, 4 heads; two heads share keys and values where the family can say it."""
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS // 2,
        "intermediate_size": WIDTH,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    if model_type == "electra":
        sizes["embedding_size"] = 16
    if model_type in ("bert", "roberta", "electra", "xlm-roberta"):
        del sizes["num_key_value_heads"]
    return AutoConfig.for_model(model_type, **{**sizes, **changes})


def tiny_model(model_type: str, auto_class: str, **changes: object) -> PreTrainedModel:
    """A random model, in evaluation mode, whose biases are not zero (a cut bias must be seen)."""
    torch.manual_seed(moved(0))
    config = tiny_config(model_type, **changes)
    model = modeling_pruned.auto_classes(type(config))[auto_class](config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def heads_of(model_type: str) -> list[str]:
    """Every AutoModel class that builds this type."""
    return sorted(modeling_pruned.auto_classes(type(tiny_config(model_type))))


def every_type_and_head() -> list[tuple[str, str]]:
    """All supported model types with all their AutoModel heads."""
    return [(model_type, head) for model_type in ARCHITECTURES.names() for head in heads_of(model_type)]


def inputs_for(auto_class: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """Two sequences of 9 tokens, the second padded; [B, choices, T] for multiple choice."""
    generator = torch.Generator().manual_seed(moved(seed))
    ids = torch.randint(3, VOCABULARY, (2, 9), generator=generator)
    attention = torch.ones_like(ids)
    ids[1, 6:], attention[1, 6:] = 0, 0
    if auto_class == "AutoModelForMultipleChoice":
        ids, attention = ids[:, None].repeat(1, 2, 1), attention[:, None].repeat(1, 2, 1)
    return {"input_ids": ids, "attention_mask": attention}


def outputs_of(model: PreTrainedModel, auto_class: str) -> torch.Tensor:
    """Every floating-point output of one forward pass, flattened."""
    with torch.no_grad():
        outputs = model(**inputs_for(auto_class))
    tensors = [value for value in outputs.to_tuple() if isinstance(value, torch.Tensor) and value.is_floating_point()]
    return torch.cat([tensor.flatten() for tensor in tensors])


def keep_for(model: PreTrainedModel, layout: str, seed: int = 0) -> KeepIndices:
    """A random selection: half of neurons and of heads, the same counts in each layer only under `uniform`."""
    rng = np.random.default_rng(moved(seed))
    keep: dict[str, dict[int, np.ndarray]] = {"neuron": {}, "head": {}}
    for site in architecture_of(model).sites(model):
        groups = site.units // site.group
        count = max(1, groups // 2) if layout == "uniform" else int(rng.integers(1, groups))
        kept = np.sort(rng.choice(groups, count, replace=False))
        keep[site.kind][site.layer] = (kept[:, None] * site.group + np.arange(site.group)).ravel()
    return KeepIndices(neurons=keep["neuron"], heads=keep["head"])


