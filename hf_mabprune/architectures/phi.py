"""Phi: decoders that add attention and FFN at once (phi), or have fused projections (phi3)."""

from hf_mabprune.architectures.base import ARCHITECTURES, Architecture
from hf_mabprune.architectures.sites import (
    GROUPS,
    PER_GROUP,
    UNITS,
    Rows,
    Stack,
    gated_ffn,
    grouped_heads,
    rows,
)


@ARCHITECTURES.register("phi")
class Phi(Architecture):
    """Declares phi. Of what is added at once the FFN alone makes up for errors below."""

    stacks = (
        Stack(
            "layers",
            (
                grouped_heads("self_attn", "dense", stream=""),
                gated_ffn(output="mlp.fc2", rows=rows("mlp.fc1"), stream="input_layernorm", attributes={}),
            ),
        ),
    )


@ARCHITECTURES.register("phi3")
class Phi3(Architecture):
    """Declares phi3: queries, keys and values are one matrix, gate and up are another."""

    stacks = (
        Stack(
            "layers",
            (
                grouped_heads(
                    "self_attn",
                    rows=(Rows("self_attn.qkv_proj", (UNITS, GROUPS, GROUPS)),),
                    attributes={"self_attn": {"num_key_value_heads": GROUPS, "num_key_value_groups": PER_GROUP}},
                    settings={"self_attn": {"num_attention_heads": UNITS}},
                ),
                gated_ffn(rows=(Rows("mlp.gate_up_proj", (UNITS, UNITS)),), attributes={}),
            ),
        ),
    )
