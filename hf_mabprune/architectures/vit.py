"""Vision transformers: layers as in an encoder of text, over patches of an image."""

from hf_mabprune.architectures.base import ARCHITECTURES, Architecture
from hf_mabprune.architectures.sites import UNITS, SiteSpec, Stack, rows


@ARCHITECTURES.register("vit")
class ViT(Architecture):
    """Declares vit."""

    classifies_first = True
    stacks = (
        Stack(
            "layers",
            (
                SiteSpec(
                    "head",
                    "attention.o_proj",
                    rows("attention.q_proj", "attention.k_proj", "attention.v_proj"),
                    units="num_attention_heads",
                    block="attention",
                    stream="layernorm_before",
                    attributes={"attention": {"num_attention_heads": UNITS}},
                ),
                SiteSpec(
                    "neuron",
                    "mlp.fc2",
                    rows("mlp.fc1"),
                    units="intermediate_size",
                    block="mlp",
                    stream="layernorm_after",
                    before=("attention",),
                ),
            ),
        ),
    )
