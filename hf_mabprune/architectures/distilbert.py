"""DistilBERT: as BERT, in words of its own."""

from hf_mabprune.architectures.base import ARCHITECTURES, Architecture
from hf_mabprune.architectures.sites import COLUMNS, UNITS, SiteSpec, Stack, rows


@ARCHITECTURES.register("distilbert")
class DistilBert(Architecture):
    """Declares distilbert."""

    head_size_field = None
    classifies_first = True
    stacks = (
        Stack(
            "transformer.layer",
            (
                SiteSpec(
                    "head",
                    "attention.out_lin",
                    rows("attention.q_lin", "attention.k_lin", "attention.v_lin"),
                    units="n_heads",
                    block="attention",
                    stream="attention.q_lin",
                    attributes={"attention": {"n_heads": UNITS, "dim": COLUMNS}},
                    empties={"attention": 2},
                ),
                SiteSpec(
                    "neuron",
                    "ffn.lin2",
                    rows("ffn.lin1"),
                    units="hidden_dim",
                    block="ffn",
                    stream="ffn.lin1",
                    before=("attention",),
                    empties={"ffn": 1},
                ),
            ),
        ),
    )
