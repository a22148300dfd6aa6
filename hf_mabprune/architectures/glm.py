"""GLM: decoders as Llama's, whose gate and up are one matrix."""

from hf_mabprune.architectures.base import ARCHITECTURES, Architecture
from hf_mabprune.architectures.sites import UNITS, Rows, Stack, gated_ffn, grouped_heads

GATE_AND_UP = (Rows("mlp.gate_up_proj", (UNITS, UNITS)),)


@ARCHITECTURES.register("glm")
class Glm(Architecture):
    """Declares glm."""

    stacks = (Stack("layers", (grouped_heads("self_attn"), gated_ffn(rows=GATE_AND_UP, attributes={}))),)


@ARCHITECTURES.register("glm4")
class Glm4(Architecture):
    """Declares glm4, which has a norm behind attention and FFN too."""

    stacks = (
        Stack(
            "layers",
            (
                grouped_heads("self_attn", norm="post_self_attn_layernorm"),
                gated_ffn(rows=GATE_AND_UP, norm="post_mlp_layernorm", attributes={}),
            ),
        ),
    )
