"""GPT-NeoX: queries, keys and values of each head side by side in one matrix."""

from hf_mabprune.architectures.base import ARCHITECTURES, Architecture
from hf_mabprune.architectures.sites import UNITS, Rows, SiteSpec, Stack, rows


@ARCHITECTURES.register("gpt_neox")
class GPTNeoX(Architecture):
    """Declares gpt_neox. Of what is added at once the FFN alone makes up for errors below."""

    head_size_field = None
    stacks = (
        Stack(
            "layers",
            (
                SiteSpec(
                    "head",
                    "attention.dense",
                    (Rows("attention.query_key_value", (UNITS, UNITS, UNITS), interleaved=True),),
                    units="num_attention_heads",
                    block="attention",
                ),
                SiteSpec(
                    "neuron",
                    "mlp.dense_4h_to_h",
                    rows("mlp.dense_h_to_4h"),
                    units="intermediate_size",
                    block="mlp",
                    stream="post_attention_layernorm",
                    before=("attention",),
                ),
            ),
        ),
    )
