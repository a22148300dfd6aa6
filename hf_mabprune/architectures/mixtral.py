"""Mixtral: a mixture of experts in the place of the FFN; neurons inside experts, and whole experts."""

from hf_mabprune.architectures.base import ARCHITECTURES, Architecture
from hf_mabprune.architectures.sites import UNITS, Rows, SiteSpec, Stack, grouped_heads


@ARCHITECTURES.register("mixtral")
class Mixtral(Architecture):
    """Declares mixtral. A token goes to a few experts, whose products are summed with the weights of the router."""

    stacks = (
        Stack(
            "layers",
            (
                grouped_heads("self_attn"),
                SiteSpec(
                    "neuron",
                    "down_proj",
                    (Rows("gate_up_proj", (UNITS, UNITS)),),
                    units="intermediate_size",
                    experts="mlp.experts",
                    block="mlp",
                    before=("self_attn",),
                    attributes={"mlp.experts": {"intermediate_dim": UNITS}},
                ),
                SiteSpec(
                    "expert",
                    "mlp.gate",
                    (
                        Rows("mlp.gate", size=1),
                        Rows("mlp.experts.gate_up_proj", size=1, dim=0),
                        Rows("mlp.experts.down_proj", size=1, dim=0),
                    ),
                    units="num_local_experts",
                    experts="mlp.experts",
                    block="mlp",
                    stream="post_attention_layernorm",
                    before=("self_attn",),
                    attributes={"mlp.experts": {"num_experts": UNITS}, "mlp.gate": {"num_experts": UNITS}},
                ),
            ),
        ),
    )
