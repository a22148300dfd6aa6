"""Models of every registered type, and of configs that leave something out or say it differently."""

import pytest
import torch
from transformers import PreTrainedModel

from hf_mabprune.architectures import ARCHITECTURES, Site, architecture_of
from tests.tiny_models import head_of, inputs_for, tiny_model
from tests.tiny_sizes import LAYERS

LONG = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.2, 1.4, 1.6],
    "long_factor": [1.0, 2.0, 3.0, 4.0],
}
SEEING = ("gemma3", "qwen2_5_vl", "qwen3_vl")  # language models that images may be shown to
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
    ("granitemoe", {"residual_multiplier": 0.3, "attention_multiplier": 0.1, "attention_bias": True}),
    ("olmoe", {"clip_qkv": 0.2, "norm_topk_prob": True, "num_experts": 3}),
    ("qwen2_moe", {"decoder_sparse_step": 2, "norm_topk_prob": True, "moe_intermediate_size": 24}),
    ("qwen2_moe", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1, "qkv_bias": False}),
    ("qwen3_moe", {"mlp_only_layers": [0], "norm_topk_prob": False, "attention_bias": True}),
    ("gpt_oss", {"attention_bias": False, "num_key_value_heads": 4, "num_local_experts": 3}),
    ("gpt_oss", {"num_key_value_heads": 1}),
    ("deepseek_v2", {"n_group": 2, "topk_group": 1, "topk_method": "group_limited_greedy", "q_lora_rank": None}),
    ("deepseek_v3", {"q_lora_rank": None, "n_shared_experts": 2, "norm_topk_prob": False, "attention_bias": True}),
    ("deepseek_v3", {"n_group": 2, "topk_group": 2, "first_k_dense_replace": 0, "rope_interleave": False}),
    ("glm4_moe", {"use_qk_norm": True, "attention_bias": True, "n_routed_experts": 3}),
    ("ernie4_5_moe", {"moe_num_shared_experts": 0, "use_bias": True, "moe_layer_start_index": 0}),
    ("t5", {"feed_forward_proj": "gated-gelu", "d_kv": 12, "num_decoder_layers": 1}),
    ("vit", {"qkv_bias": False}),
    ("gpt2", {"n_inner": None}),
    ("deberta-v2", {"share_att_key": False, "position_buckets": -1, "position_biased_input": True}),
    ("deberta-v2", {"conv_kernel_size": 3, "conv_act": "gelu", "num_hidden_layers": 3}),
    ("modernbert", {"attention_bias": True, "mlp_bias": True, "classifier_pooling": "mean"}),
    ("albert", {"num_hidden_layers": 4, "num_hidden_groups": 2, "inner_group_num": 2}),
    ("esm", {"position_embedding_type": "rotary", "token_dropout": True, "mask_token_id": 3}),
    ("roformer", {"rotary_value": True, "embedding_size": 16}),
    ("opt", {"do_layer_norm_before": False, "word_embed_proj_dim": 16}),
    ("gpt_neox", {"use_parallel_residual": False, "attention_bias": False}),
    ("phi", {"qk_layernorm": True, "partial_rotary_factor": 0.5}),
    ("phi3", {"rope_parameters": LONG, "original_max_position_embeddings": 4, "sliding_window": 4}),
    ("phi3", {"num_key_value_heads": 1}),
    ("gemma2", {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 2.0, "query_pre_attn_scalar": 4}),
    ("granite", {"residual_multiplier": 0.3, "attention_multiplier": 0.1, "logits_scaling": 2.0, "mlp_bias": True}),
    ("smollm3", {"no_rope_layers": [1, 0]}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}),
    ("ernie4_5", {"use_bias": True}),
    ("seed_oss", {"attention_out_bias": True, "mlp_bias": True}),
    ("starcoder2", {"use_bias": False}),
    ("stablelm", {"use_parallel_residual": True, "use_qkv_bias": True}),
    ("stablelm", {"qk_layernorm": True}),
    ("cohere", {"use_qk_norm": True, "attention_bias": True}),
    ("olmo", {"clip_qkv": 0.2}),
    ("nemotron", {"mlp_bias": True, "attention_bias": True}),
    ("glm", {"attention_bias": True, "num_key_value_heads": 1}),
    ("lfm2", {"block_auto_adjust_ff_dim": True, "intermediate_size": 72, "block_multiple_of": 16}),
    ("qwen3_5_text", {"num_key_value_heads": 1, "attention_bias": True}),
    ("bart", {"scale_embedding": True, "decoder_layers": 1}),
    ("whisper", {"decoder_layers": 1, "scale_embedding": True}),
    ("dinov2", {"use_swiglu_ffn": True, "qkv_bias": False}),
    ("wav2vec2", {"do_stable_layer_norm": True, "feat_extract_norm": "layer", "conv_bias": True}),
]
variants = pytest.mark.parametrize(("model_type", "changes"), VARIANTS, ids=str)


def model_of(model_type: str, **changes: object) -> PreTrainedModel:
    return tiny_model(model_type, head_of(model_type), **changes)


def sites_of(model: PreTrainedModel) -> list[Site]:
    return architecture_of(model).sites(model)


def one_example(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """9 tokens, and 5 for a decoder that reads them; or an image of 16 patches."""
    return {name: tensor[:1] for name, tensor in inputs_for(model).items()}


def experts_by_layer(model: PreTrainedModel) -> list[int]:
    """Experts that each layer has behind a router: none, where an FFN is in their place."""
    config = model.config
    names = ("num_local_experts", "num_experts", "n_routed_experts")
    count = next((getattr(config, name) for name in names if hasattr(config, name)), 0)
    first = getattr(config, "first_k_dense_replace", getattr(config, "moe_layer_start_index", 0))
    step, whole = getattr(config, "decoder_sparse_step", 1), getattr(config, "mlp_only_layers", None) or []
    layers = range(getattr(config, "num_hidden_layers", 0))
    return [count if each >= first and (each + 1) % step == 0 and each not in whole else 0 for each in layers]


def shared_experts(model: PreTrainedModel) -> int:
    """Shared experts beside those behind a router."""
    names = ("n_shared_experts", "moe_num_shared_experts")
    given = [getattr(model.config, name) for name in names if hasattr(model.config, name)]
    return int(given[0]) if given else int(hasattr(model.config, "shared_expert_intermediate_size"))


def sites_by_layer(model: PreTrainedModel) -> list[tuple[int, int]]:
    """Sites of heads, and of FFNs that all positions go through, of each layer, in the order in which layers run."""
    config, kind = model.config, str(model.config.model_type)
    own = config.get_text_config() if kind in SEEING else getattr(config, "vision_config", config)
    if config.is_encoder_decoder:
        decoder = config.num_decoder_layers if kind in ("t5", "mt5") else config.decoder_layers
        return [(1, 1)] * LAYERS + [(2, 1)] * decoder
    if kind == "albert":
        return [(1, 1)] * (config.num_hidden_groups * config.inner_group_num)
    types = getattr(own, "layer_types", None) or ["full_attention"] * own.num_hidden_layers
    whole = kind in ("olmo2", "olmo3", "olmoe") or (getattr(config, "qk_layernorm", False) and kind == "stablelm")
    heads = [0 if whole or each in ("conv", "linear_attention") else 1 for each in types]
    if any(experts := experts_by_layer(model)):
        shared = min(1, shared_experts(model))
        return [(number, shared if count else 1) for number, count in zip(heads, experts, strict=True)]
    return [(number, 1) for number in heads] + [(0, 1)] * (kind in ("siglip", "siglip_vision_model"))
