"""Qwen3.5: gated FFN in every layer, attention with a gate in some, linear attention in the others."""

from hf_mabprune.architectures.base import ARCHITECTURES, Architecture
from hf_mabprune.architectures.sites import GROUPS, UNITS, Rows, Stack, gated_ffn, grouped_heads


@ARCHITECTURES.register("qwen3_5_text")
class Qwen35(Architecture):
    """Declares qwen3_5_text. Each head has its query and its gate side by side; linear attention stays whole."""

    stacks = (
        Stack(
            "layers",
            (
                grouped_heads(
                    "self_attn",
                    rows=(
                        Rows("self_attn.q_proj", (UNITS, UNITS), interleaved=True),
                        Rows("self_attn.k_proj", (GROUPS,)),
                        Rows("self_attn.v_proj", (GROUPS,)),
                    ),
                ),
                gated_ffn(before=("self_attn", "linear_attn")),
            ),
        ),
    )
