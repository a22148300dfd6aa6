"""Vision transformers: layers as in an encoder of text, over patches of an image."""

from hf_mabprune.architectures.base import ARCHITECTURES, Architecture
from hf_mabprune.architectures.sites import UNITS, SiteSpec, Stack, plain_heads, rows

COUNT = {"attention": {"num_attention_heads": UNITS}}


@ARCHITECTURES.register("vit", "deit")
class ViT(Architecture):
    """Declares vit and deit."""

    classifies_first = True
    stacks = (
        Stack(
            "layers",
            (
                plain_heads(
                    "attention", "o_proj", stream="layernorm_before", attributes=COUNT, empties={"attention": 2}
                ),
                SiteSpec(
                    "neuron",
                    "mlp.fc2",
                    rows("mlp.fc1"),
                    units="intermediate_size",
                    block="mlp",
                    stream="layernorm_after",
                    before=("attention",),
                    empties={"mlp": 1},
                ),
            ),
        ),
    )


@ARCHITECTURES.register("dinov2")
class Dinov2(Architecture):
    """Declares dinov2, plain or gated, which scales what it adds: no refit makes up for what is below.

    Its configs say the number of neurons as a multiple of the hidden size.
    """

    stacks = (
        Stack(
            "encoder.layer",
            (
                plain_heads("attention", "o_proj", attributes=COUNT),
                SiteSpec("neuron", "mlp.fc2", rows("mlp.fc1"), units="", block="mlp", before=("attention",)),
                SiteSpec(
                    "neuron",
                    "mlp.down_proj",
                    rows("mlp.gate_proj", "mlp.up_proj"),
                    units="",
                    block="mlp",
                    before=("attention",),
                ),
            ),
        ),
    )
