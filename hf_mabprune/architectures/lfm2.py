"""LFM2: gated FFN in every layer, attention in some, short convolutions in the others."""

from hf_mabprune.architectures.base import ARCHITECTURES, Architecture
from hf_mabprune.architectures.sites import Stack, gated_ffn, grouped_heads, rows


@ARCHITECTURES.register("lfm2")
class Lfm2(Architecture):
    """Declares lfm2. Convolutions stay whole."""

    stacks = (
        Stack(
            "layers",
            (
                grouped_heads("self_attn", "out_proj", stream="operator_norm"),
                gated_ffn(
                    output="feed_forward.w2",
                    rows=rows("feed_forward.w1", "feed_forward.w3"),
                    block="feed_forward",
                    stream="ffn_norm",
                    before=("self_attn", "conv"),
                    attributes={},
                    fixed={"block_auto_adjust_ff_dim": False},
                    empties={"feed_forward": 1},
                ),
            ),
        ),
    )
