"""Models of every registered type, and of configs that leave something out or say it differently."""

import pytest
import torch
from transformers import PreTrainedModel

from hf_mabprune.architectures import ARCHITECTURES, Site, architecture_of
from tests.problems import head_of
from tests.tiny_models import inputs_for, tiny_model

TYPES = ARCHITECTURES.names()
VARIANTS = [(model_type, {}) for model_type in TYPES] + [
    ("llama", {"attention_bias": True, "mlp_bias": True}),
    ("llama", {"num_attention_heads": 8, "num_key_value_heads": 2}),
    ("llama", {"num_key_value_heads": 4}),
    *((model_type, {"num_key_value_heads": 1}) for model_type in ("llama", "mistral", "gemma3_text", "mixtral")),
    ("mistral", {"head_dim": 12}),
    ("qwen3", {"head_dim": 8}),
    ("gemma3_text", {"attention_bias": True, "head_dim": 12}),
    ("mixtral", {"head_dim": 12, "num_key_value_heads": 4, "num_local_experts": 3}),
    ("t5", {"feed_forward_proj": "gated-gelu", "d_kv": 12, "num_decoder_layers": 1}),
    ("vit", {"qkv_bias": False}),
    ("gpt2", {"n_inner": None}),
]
variants = pytest.mark.parametrize(("model_type", "changes"), VARIANTS, ids=str)


def model_of(model_type: str, **changes: object) -> PreTrainedModel:
    return tiny_model(model_type, head_of(model_type), **changes)


def sites_of(model: PreTrainedModel) -> list[Site]:
    return architecture_of(model).sites(model)


def one_example(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """9 tokens, and 5 for a decoder that reads them; or an image of 16 patches."""
    return {name: tensor[:1] for name, tensor in inputs_for(model).items()}
