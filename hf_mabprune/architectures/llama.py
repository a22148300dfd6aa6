"""Llama-like decoders: gated FFN, grouped-query attention."""

from hf_mabprune.architectures.base import ARCHITECTURES, Architecture
from hf_mabprune.architectures.sites import GROUPS, UNITS, Rows, SiteSpec, Stack, rows


@ARCHITECTURES.register("llama", "mistral", "qwen2", "qwen3")
class Llama(Architecture):
    """Declares llama and its like. A head arm is one key-value group: a key-value head and its query heads."""

    stacks = (
        Stack(
            "layers",
            (
                SiteSpec(
                    "head",
                    "self_attn.o_proj",
                    (
                        Rows("self_attn.q_proj"),
                        Rows("self_attn.k_proj", (GROUPS,)),
                        Rows("self_attn.v_proj", (GROUPS,)),
                    ),
                    units="num_attention_heads",
                    groups="num_key_value_heads",
                    block="self_attn",
                ),
                SiteSpec(
                    "neuron",
                    "mlp.down_proj",
                    rows("mlp.gate_proj", "mlp.up_proj"),
                    units="intermediate_size",
                    block="mlp",
                    before=("self_attn",),
                    attributes={"mlp": {"intermediate_size": UNITS}},
                ),
            ),
        ),
    )
