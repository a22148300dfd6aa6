"""BERT-like encoders: plain FFN, one head a key-value head, stock configs that tie head size to head count."""

from dataclasses import replace

from hf_mabprune.architectures.base import ARCHITECTURES, Architecture
from hf_mabprune.architectures.sites import COLUMNS, UNITS, Rows, SiteSpec, Stack, rows

SIZES = {"num_attention_heads": UNITS, "all_head_size": COLUMNS}
HEADS = SiteSpec(
    "head",
    "attention.output.dense",
    rows("attention.self.query", "attention.self.key", "attention.self.value"),
    units="num_attention_heads",
    attributes={"attention.self": SIZES},
    stream="attention.self.query",
    feeds=("attention.self",),
    empties={"attention.self": 2, "attention.output.dense": 1},
)
FFN = SiteSpec(
    "neuron",
    "output.dense",
    rows("intermediate.dense"),
    units="intermediate_size",
    stream="intermediate.dense",
    feeds=("intermediate",),
    before=("attention",),
    empties={"intermediate.dense": 1, "output.dense": 1},
)


@ARCHITECTURES.register("bert", "roberta", "electra", "xlm-roberta", "camembert", "data2vec-text", "roformer")
class Bert(Architecture):
    """Declares bert and its like: self-attention and FFN of every layer."""

    head_size_field = None
    classifies_first = True
    stacks = (Stack("encoder.layer", (HEADS, FFN)),)


@ARCHITECTURES.register("esm")
class Esm(Architecture):
    """Declares esm: as bert, with norms that come first."""

    head_size_field = None
    classifies_first = True
    stacks = (
        Stack(
            "encoder.layer",
            (replace(HEADS, stream="attention.LayerNorm"), replace(FFN, stream="LayerNorm")),
            count="",  # its contact head reads the attentions of all
        ),
    )


@ARCHITECTURES.register("deberta-v2")
class Deberta(Architecture):
    """Declares deberta-v2, which deberta-v3 is one of: heads have projections of relative positions too."""

    head_size_field = "attention_head_size"
    classifies_first = True
    stacks = (
        Stack(
            "encoder.layer",
            (
                replace(
                    HEADS,
                    rows=(  # queries and keys may be made of relative positions as well, by the same weights
                        *(
                            Rows(f"attention.self.{name}_proj", elsewhere=True)
                            for name in ("query", "key", "pos_key", "pos_query")
                        ),
                        Rows("attention.self.value_proj"),
                    ),
                    stream="attention.self.value_proj",
                ),
                FFN,
            ),
            read_aside=True,  # by the convolution beside the first layer of the largest ones
        ),
    )


@ARCHITECTURES.register("mpnet")
class MPNet(Architecture):
    """Declares mpnet, which hands biases by position, one for each head, to all layers."""

    head_size_field = None
    classifies_first = True
    stacks = (
        Stack(
            "encoder.layer",
            (
                replace(
                    HEADS,
                    output="attention.attn.o",
                    rows=rows("attention.attn.q", "attention.attn.k", "attention.attn.v"),
                    attributes={"attention.attn": SIZES},
                    arguments={"attention": {"position_bias": True}},
                    block="attention.attn",
                    stream="attention",
                    feeds=(),
                    empties={"attention.attn": 2},
                ),
                FFN,
            ),
        ),
    )
