"""ModernBERT: gated FFN, and one matrix for queries, keys and values."""

from hf_mabprune.architectures.base import ARCHITECTURES, Architecture
from hf_mabprune.architectures.sites import UNITS, Rows, SiteSpec, Stack


@ARCHITECTURES.register("modernbert")
class ModernBert(Architecture):
    """Declares modernbert."""

    head_size_field = None
    classifies_first = True
    stacks = (
        Stack(
            "layers",
            (
                SiteSpec(
                    "head",
                    "attn.Wo",
                    (Rows("attn.Wqkv", (UNITS, UNITS, UNITS)),),
                    units="num_attention_heads",
                    block="attn",
                    stream="attn_norm",
                ),
                SiteSpec(
                    "neuron",
                    "mlp.Wo",
                    (Rows("mlp.Wi", (UNITS, UNITS)),),
                    units="intermediate_size",
                    block="mlp",
                    stream="mlp_norm",
                    before=("attn",),
                ),
            ),
        ),
    )
