"""ALBERT: an encoder that runs the same layer over and over."""

from hf_mabprune.architectures.base import ARCHITECTURES, Architecture
from hf_mabprune.architectures.sites import COLUMNS, UNITS, SiteSpec, Stack, rows


@ARCHITECTURES.register("albert")
class Albert(Architecture):
    """Declares albert. A unit goes from all runs of its layer at once."""

    head_size_field = None
    classifies_first = True
    stacks = (
        Stack(
            "encoder.albert_layer_groups.*.albert_layers",
            (
                SiteSpec(
                    "head",
                    "attention.dense",
                    rows("attention.query", "attention.key", "attention.value"),
                    units="num_attention_heads",
                    attributes={"attention": {"num_attention_heads": UNITS, "all_head_size": COLUMNS}},
                ),
                SiteSpec(
                    "neuron",
                    "ffn_output",
                    rows("ffn"),
                    units="intermediate_size",
                    before=("attention",),
                ),
            ),
            shared=True,
        ),
    )
