"""Gemma 3: decoders as Llama's, with a norm behind attention and FFN too."""

from hf_mabprune.architectures.base import ARCHITECTURES, Architecture
from hf_mabprune.architectures.sites import UNITS, SiteSpec, Stack, grouped_heads, rows


@ARCHITECTURES.register("gemma3_text")
class Gemma(Architecture):
    """Declares gemma3_text. A head arm is one key-value group: a key-value head and its query heads."""

    stacks = (
        Stack(
            "layers",
            (
                grouped_heads("self_attn", norm="post_attention_layernorm"),
                SiteSpec(
                    "neuron",
                    "mlp.down_proj",
                    rows("mlp.gate_proj", "mlp.up_proj"),
                    units="intermediate_size",
                    block="mlp",
                    stream="pre_feedforward_layernorm",
                    norm="post_feedforward_layernorm",
                    before=("self_attn",),
                    attributes={"mlp": {"intermediate_size": UNITS}},
                ),
            ),
        ),
    )
