"""Cohere: decoders that add attention and FFN of a layer at once."""

from hf_mabprune.architectures.base import ARCHITECTURES, Architecture
from hf_mabprune.architectures.sites import GROUPS, Rows, Stack, gated_ffn, grouped_heads

HEADS = grouped_heads("self_attn", stream="")


@ARCHITECTURES.register("cohere", "cohere2")
class Cohere(Architecture):
    """Declares cohere and cohere2; with `use_qk_norm` each head has a row of the norms of queries and keys.

    Of what is added at once the FFN alone makes up for errors below.
    """

    stacks = (
        Stack(
            "layers",
            (
                grouped_heads(
                    "self_attn",
                    stream="",
                    rows=(*HEADS.rows, Rows("self_attn.q_norm"), Rows("self_attn.k_norm", (GROUPS,))),
                ),
                gated_ffn(stream="input_layernorm"),
            ),
        ),
    )
