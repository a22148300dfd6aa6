"""Sizes of tiny random models of every type: hidden size 32, 2 layers a stack, 48 neurons, 4 heads, as a rule."""

from typing import Any

LAYERS, WIDTH, HEADS, EXPERTS, VOCABULARY = 2, 48, 4, 4, 64
TOKENS = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SIZES = TOKENS | {
    "hidden_size": 32,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": WIDTH,
    "max_position_embeddings": 64,
}
GROUPED = SIZES | {"num_key_value_heads": HEADS // 2}  # two heads share keys and values
STATED = GROUPED | {"head_dim": 8}  # by types whose configs state another head size
PLAIN = ("bert", "roberta", "xlm-roberta", "camembert", "data2vec-text", "esm", "roformer", "mpnet", "gpt_neox")
PART = {"hidden_size": 32, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "intermediate_size": WIDTH}
IMAGE = PART | {"image_size": 16, "patch_size": 4}
T5 = TOKENS | {
    "d_model": 32,
    "d_kv": 8,
    "d_ff": WIDTH,
    "num_layers": LAYERS,
    "num_heads": HEADS,
    "decoder_start_token_id": 0,
}
TWO_STACKS = TOKENS | {"d_model": 32, "decoder_start_token_id": 2, "forced_eos_token_id": None}
TWO_STACKS |= {
    f"{side}_{name}": size
    for side in ("encoder", "decoder")
    for name, size in {"layers": LAYERS, "attention_heads": HEADS, "ffn_dim": WIDTH}.items()
}
TOWERS = {"text_config": SIZES, "vision_config": IMAGE, "projection_dim": 16}
SEEING = {
    "text_config": STATED,
    "vision_config": IMAGE,
    "image_token_id": 60,
    "image_token_index": 60,
    "pad_token_id": 0,
}
QWEN_VISION = {"depth": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 16, "out_hidden_size": 32}
ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
MIXED = GROUPED | {"num_experts_per_tok": 2}
BESIDE = {"moe_intermediate_size": WIDTH, "first_k_dense_replace": 1, "n_routed_experts": EXPERTS}
BESIDE |= {"n_shared_experts": 1, "n_group": 1, "topk_group": 1}
LATENT = SIZES | BESIDE | {"num_experts_per_tok": 2, "num_key_value_heads": HEADS, "q_lora_rank": 16}
LATENT |= {"kv_lora_rank": 16, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 12}
OF_TYPE: dict[str, dict[str, Any]] = {  # where they differ from `GROUPED`
    **dict.fromkeys(PLAIN, SIZES),
    **dict.fromkeys(("gemma", "seed_oss", "glm", "glm4", "ernie4_5", "ministral3"), STATED),
    "electra": SIZES | {"embedding_size": 16},
    "deberta-v2": SIZES
    | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8, "type_vocab_size": 0}
    | {"share_att_key": True, "norm_rel_ebd": "layer_norm", "position_biased_input": False},
    "distilbert": TOKENS
    | {"dim": 32, "n_layers": LAYERS, "n_heads": HEADS, "hidden_dim": WIDTH, "max_position_embeddings": 64},
    "albert": SIZES | {"embedding_size": 16},
    "modernbert": SIZES
    | {"global_attn_every_n_layers": 2, "local_attention": 8, "cls_token_id": 1, "sep_token_id": 2},
    "exaone4": GROUPED | {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
    "cohere2": GROUPED | {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
    "olmo3": GROUPED | {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
    "gemma2": STATED | {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
    "gemma3_text": STATED | {"sliding_window": 4, "sliding_window_pattern": 2},
    "lfm2": GROUPED | {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
    "gemma3": SEEING | {"text_config": STATED | {"sliding_window": 4, "sliding_window_pattern": 2}},
    "qwen2_5_vl": SEEING | {"text_config": GROUPED | {"rope_parameters": ROPE}, "vision_config": QWEN_VISION},
    "qwen3_vl": SEEING
    | {"text_config": STATED | {"rope_parameters": ROPE}}
    | {"vision_config": QWEN_VISION | {"deepstack_visual_indexes": [0], "num_position_embeddings": 16}},
    "opt": TOKENS
    | {"hidden_size": 32, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "ffn_dim": WIDTH}
    | {"word_embed_proj_dim": 32, "max_position_embeddings": 64},
    "qwen3_5_text": STATED
    | {"layer_types": ["linear_attention", "full_attention"], "linear_key_head_dim": 8, "linear_value_head_dim": 8}
    | {"linear_num_key_heads": 2, "linear_num_value_heads": 4},
    "gpt2": TOKENS | {"n_embd": 32, "n_layer": LAYERS, "n_head": HEADS, "n_inner": WIDTH, "n_positions": 64},
    **dict.fromkeys(("mixtral", "phimoe", "granitemoe"), MIXED | {"num_local_experts": EXPERTS}),
    "olmoe": MIXED | {"num_experts": EXPERTS},
    "qwen2_moe": MIXED
    | {"num_experts": EXPERTS, "moe_intermediate_size": WIDTH, "shared_expert_intermediate_size": WIDTH},
    "qwen3_moe": MIXED
    | {"head_dim": 8, "num_experts": EXPERTS, "moe_intermediate_size": WIDTH, "norm_topk_prob": True},
    "gpt_oss": MIXED
    | {"head_dim": 8, "num_local_experts": EXPERTS, "sliding_window": 4}
    | {"layer_types": ["sliding_attention", "full_attention"]},
    "deepseek_v2": LATENT | {"topk_method": "greedy"},
    "deepseek_v3": LATENT,
    "ernie4_5_moe": GROUPED
    | {"head_dim": 8, "moe_num_experts": EXPERTS, "moe_k": 2, "moe_intermediate_size": WIDTH}
    | {"moe_num_shared_experts": 1, "moe_layer_start_index": 1},
    **dict.fromkeys(("glm4_moe", "dots1"), MIXED | BESIDE | {"head_dim": 8}),
    "t5": T5,
    "mt5": T5 | {"feed_forward_proj": "gated-gelu"},
    **dict.fromkeys(("bart", "mbart", "pegasus", "marian", "m2m_100"), TWO_STACKS | {"max_position_embeddings": 64}),
    "whisper": TWO_STACKS | {"max_source_positions": 20, "max_target_positions": 20, "num_mel_bins": 8},
    **dict.fromkeys(("vit", "deit"), IMAGE),
    "dinov2": IMAGE | {"mlp_ratio": 2},
    **dict.fromkeys(("clip", "siglip"), TOWERS),
    "clip_text_model": SIZES,
    **dict.fromkeys(("clip_vision_model", "siglip_vision_model"), IMAGE),
    "wav2vec2": PART
    | {"vocab_size": VOCABULARY, "conv_dim": [16, 16], "conv_stride": [4, 2], "conv_kernel": [8, 4]}
    | {
        "num_conv_pos_embeddings": 4,
        "num_conv_pos_embedding_groups": 2,
        "num_feat_extract_layers": 2,
        "initializer_range": 0.3,
    }
    | {"tdnn_dim": [8] * 5, "tdnn_kernel": [1] * 5, "tdnn_dilation": [1] * 5, "xvector_output_dim": 8},
}
UNLIKE = (  # one type of each way in which families differ, for tests that go deeper than every type needs
    "bert", "mpnet", "opt", "llama", "gemma3_text", "phi3", "gpt_neox", "gpt2", "lfm2", "mixtral", "t5",
    "bart", "vit",
)  # fmt: skip
