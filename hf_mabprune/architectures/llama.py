"""Llama-like decoders: gated FFN, grouped-query attention."""

from collections.abc import Mapping
from typing import ClassVar

from transformers import PretrainedConfig

from hf_mabprune.architectures.base import ARCHITECTURES, Architecture, SiteSpec


class GatedDecoder(Architecture):
    """Declares what Llama and its like share. A head arm is one key-value group: a kv head and its query heads."""

    layers = "layers"
    attention_block = "self_attn"
    ffn = SiteSpec(
        output="mlp.down_proj",
        per_unit=("mlp.gate_proj", "mlp.up_proj"),
        attributes={"mlp": {"intermediate_size": "units"}},
        block="mlp",
    )
    attention = SiteSpec(
        output="self_attn.o_proj",
        per_unit=("self_attn.q_proj",),
        per_group=("self_attn.k_proj", "self_attn.v_proj"),
        block="self_attn",
    )
    groups_field = "num_key_value_heads"

    def head_size(self, config: PretrainedConfig) -> int:
        """Gives Dh, which these configs may state apart from D / H."""
        return int(getattr(config, "head_dim", None) or super().head_size(config))

    def set_uniform_heads(self, config: PretrainedConfig, heads: int) -> None:
        """Writes any number of heads: head_dim is written out, so it no longer follows from the head count."""
        head_size, group = self.head_size(config), self.group_size(config)
        config.head_dim = head_size
        config.num_attention_heads = heads
        config.num_key_value_heads = heads // group


@ARCHITECTURES.register("mistral", "qwen2")
class Mistral(GatedDecoder):
    """Declares mistral and qwen2."""


@ARCHITECTURES.register("qwen3")
class Qwen3(GatedDecoder):
    """Declares qwen3, whose config can give the attention projections biases."""

    bias_fields: ClassVar[Mapping[str, str]] = {"head": "attention_bias"}


@ARCHITECTURES.register("llama")
class Llama(GatedDecoder):
    """Declares llama, whose config refuses head counts that do not divide the hidden size."""

    bias_fields: ClassVar[Mapping[str, str]] = {"neuron": "mlp_bias", "head": "attention_bias"}

    def set_uniform_heads(self, config: PretrainedConfig, heads: int) -> None:
        """Writes counts that divide the hidden size, and refuses others."""
        if config.hidden_size % heads:
            raise ValueError(
                f"a stock llama config cannot say {heads} heads: hidden_size {config.hidden_size} is not a multiple "
                f"of {heads}. Keep a number of heads that divides it, or use layout per_layer"
            )
        super().set_uniform_heads(config, heads)
