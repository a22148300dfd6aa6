"""Llama-like decoders: gated FFN, grouped-query attention."""

from hf_mabprune.architectures.base import ARCHITECTURES, Architecture
from hf_mabprune.architectures.sites import UNITS, SiteSpec, Stack, grouped_heads, rows


@ARCHITECTURES.register("llama", "mistral", "qwen2", "qwen3")
class Llama(Architecture):
    """Declares llama and its like. A head arm is one key-value group: a key-value head and its query heads.

    Where all query heads have one key-value head in common, that one stays, and each of them is an arm.
    """

    stacks = (
        Stack(
            "layers",
            (
                grouped_heads("self_attn"),
                SiteSpec(
                    "neuron",
                    "mlp.down_proj",
                    rows("mlp.gate_proj", "mlp.up_proj"),
                    units="intermediate_size",
                    block="mlp",
                    stream="post_attention_layernorm",
                    before=("self_attn",),
                    attributes={"mlp": {"intermediate_size": UNITS}},
                ),
            ),
        ),
    )
