"""Llama-like decoders: grouped-query attention, then an FFN, each with a sum of its own."""

from hf_mabprune.architectures.base import ARCHITECTURES, Architecture
from hf_mabprune.architectures.sites import GROUPS, PER_GROUP, UNITS, Stack, gated_ffn, grouped_heads, rows

LIKE = ("mistral", "qwen2", "qwen3", "gemma", "olmo", "smollm3", "seed_oss", "ernie4_5", "ministral3")


@ARCHITECTURES.register("llama", *LIKE)
class Llama(Architecture):
    """Declares llama and its like. A head arm is one key-value group: a key-value head and its query heads.

    Where all query heads have one key-value head in common, that one stays, and each of them is an arm.
    """

    stacks = (Stack("layers", (grouped_heads("self_attn"), gated_ffn())),)


@ARCHITECTURES.register("qwen2_5_vl", "qwen3_vl")
class QwenVL(Architecture):
    """Declares the language models of qwen2_5_vl and qwen3_vl; what sees images stays whole.

    Between the first layers of qwen3_vl features of images are added.
    """

    stacks = (
        Stack(
            "language_model.layers",
            (grouped_heads("self_attn"), gated_ffn()),
            "text_config",
            read_aside=True,
        ),
    )


@ARCHITECTURES.register("granite")
class Granite(Architecture):
    """Declares granite, which multiplies what it adds: no refit makes up for what is below."""

    stacks = (Stack("layers", (grouped_heads("self_attn", stream=""), gated_ffn(stream=""))),)


@ARCHITECTURES.register("nemotron")
class Nemotron(Architecture):
    """Declares nemotron: an FFN without gate."""

    stacks = (Stack("layers", (grouped_heads("self_attn"), gated_ffn(rows=rows("mlp.up_proj")))),)


@ARCHITECTURES.register("starcoder2")
class Starcoder(Architecture):
    """Declares starcoder2: an FFN without gate."""

    stacks = (
        Stack(
            "layers",
            (
                grouped_heads("self_attn"),
                gated_ffn(output="mlp.c_proj", rows=rows("mlp.c_fc"), attributes={}),
            ),
        ),
    )


@ARCHITECTURES.register("stablelm")
class StableLm(Architecture):
    """Declares stablelm. With `use_parallel_residual` attention and FFN are added at once."""

    head_size_field = None
    stacks = (
        Stack(
            "layers",
            (
                grouped_heads(
                    "self_attn",
                    stream="",
                    attributes={
                        "self_attn": {
                            "num_heads": UNITS,
                            "num_key_value_heads": GROUPS,
                            "num_key_value_groups": PER_GROUP,
                        }
                    },
                    when=lambda config: not config.qk_layernorm,
                    reason="each head has a norm that is a module of its own (qk_layernorm)",
                ),
                gated_ffn(stream=""),
            ),
        ),
    )


@ARCHITECTURES.register("exaone4")
class Exaone(Architecture):
    """Declares exaone4: norms behind attention and FFN, none before."""

    stacks = (
        Stack(
            "layers",
            (
                grouped_heads("self_attn", stream="self_attn.q_proj", norm="post_attention_layernorm"),
                gated_ffn(stream="mlp", norm="post_feedforward_layernorm"),
            ),
        ),
    )


@ARCHITECTURES.register("olmo2", "olmo3")
class Olmo(Architecture):
    """Declares olmo2 and olmo3: norms behind attention and FFN, and of all queries together, so that heads stay."""

    stacks = (
        Stack(
            "layers",
            (
                grouped_heads(
                    "self_attn",
                    when=lambda config: False,
                    reason="q_norm and k_norm run over all heads together",
                ),
                gated_ffn(stream="mlp", norm="post_feedforward_layernorm"),
            ),
        ),
    )
