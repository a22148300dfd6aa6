"""BERT-like encoders: plain FFN, one head a key-value head, stock configs that tie head size to head count."""

from hf_mabprune.architectures.base import ARCHITECTURES, Architecture
from hf_mabprune.architectures.sites import COLUMNS, UNITS, SiteSpec, Stack, rows


@ARCHITECTURES.register("bert", "roberta", "electra", "xlm-roberta")
class Bert(Architecture):
    """Declares bert, roberta, electra and xlm-roberta: self-attention and FFN of every layer."""

    head_size_field = None
    classifies_first = True
    stacks = (
        Stack(
            "encoder.layer",
            (
                SiteSpec(
                    "head",
                    "attention.output.dense",
                    rows("attention.self.query", "attention.self.key", "attention.self.value"),
                    units="num_attention_heads",
                    attributes={"attention.self": {"num_attention_heads": UNITS, "all_head_size": COLUMNS}},
                    stream="attention.self.query",
                    feeds=("attention.self",),
                ),
                SiteSpec(
                    "neuron",
                    "output.dense",
                    rows("intermediate.dense"),
                    units="intermediate_size",
                    stream="intermediate.dense",
                    feeds=("intermediate",),
                    before=("attention",),
                ),
            ),
        ),
    )
