"""Gemma 2 and 3: decoders as Llama's, with a norm behind attention and FFN too."""

from hf_mabprune.architectures.base import ARCHITECTURES, Architecture
from hf_mabprune.architectures.sites import Stack, gated_ffn, grouped_heads

SITES = (
    grouped_heads("self_attn", norm="post_attention_layernorm"),
    gated_ffn(stream="pre_feedforward_layernorm", norm="post_feedforward_layernorm"),
)


@ARCHITECTURES.register("gemma2", "gemma3_text")
class Gemma(Architecture):
    """Declares gemma2 and gemma3_text. A head arm is one key-value group: a key-value head and its query heads."""

    stacks = (Stack("layers", SITES),)


@ARCHITECTURES.register("gemma3")
class Gemma3(Architecture):
    """Declares the language model of gemma3; what sees images stays whole."""

    stacks = (Stack("language_model.layers", SITES, "text_config"),)
