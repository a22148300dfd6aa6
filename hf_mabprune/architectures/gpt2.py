"""GPT-2: Conv1D modules, one matrix for queries, keys and values."""

from hf_mabprune.architectures.base import ARCHITECTURES, Architecture
from hf_mabprune.architectures.sites import COLUMNS, UNITS, Rows, SiteSpec, Stack, rows


@ARCHITECTURES.register("gpt2")
class GPT2(Architecture):
    """Declares gpt2."""

    head_size_field = None
    stacks = (
        Stack(
            "h",
            (
                SiteSpec(
                    "head",
                    "attn.c_proj",
                    (Rows("attn.c_attn", (UNITS, UNITS, UNITS)),),
                    units="n_head",
                    block="attn",
                    stream="ln_1",
                    attributes={"attn": {"num_heads": UNITS, "split_size": COLUMNS}},
                    empties={"attn": 2},
                ),
                SiteSpec(
                    "neuron",
                    "mlp.c_proj",
                    rows("mlp.c_fc"),
                    units="n_inner",
                    block="mlp",
                    stream="ln_2",
                    before=("attn",),
                    empties={"mlp": 1},
                ),
            ),
        ),
    )
