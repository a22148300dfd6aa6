"""BERT-like encoders: plain FFN, one head a key-value head, stock configs that tie head size to head count."""

from hf_mabprune.architectures.base import ARCHITECTURES, Architecture, SiteSpec


@ARCHITECTURES.register("bert", "roberta", "electra", "xlm-roberta")
class Bert(Architecture):
    """Declares bert, roberta, electra and xlm-roberta: self-attention and FFN of every layer."""

    layers = "encoder.layer"
    attention_block = "attention"
    classifies_first = True
    ffn = SiteSpec(output="output.dense", per_unit=("intermediate.dense",), feeds=("intermediate",))
    attention = SiteSpec(
        output="attention.output.dense",
        per_unit=("attention.self.query", "attention.self.key", "attention.self.value"),
        attributes={"attention.self": {"num_attention_heads": "units", "all_head_size": "columns"}},
        feeds=("attention.self",),
    )
