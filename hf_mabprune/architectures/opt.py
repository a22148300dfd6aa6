"""OPT: plain FFN over examples and positions as one."""

from hf_mabprune.architectures.base import ARCHITECTURES, Architecture
from hf_mabprune.architectures.sites import SiteSpec, Stack, plain_heads, rows


def _sites(first: bool) -> tuple[SiteSpec, SiteSpec]:
    """Declares the sites of a layer whose norms come first, or behind the sums, as in the model of 350M parameters."""

    def when(config: object) -> bool:
        return bool(getattr(config, "do_layer_norm_before", True)) == first

    streams = ("self_attn_layer_norm", "final_layer_norm") if first else ("self_attn.q_proj", "fc1")
    return (
        plain_heads("self_attn", "out_proj", stream=streams[0], empties={"self_attn": 2}, when=when),
        SiteSpec(
            "neuron",
            "fc2",
            rows("fc1"),
            units="ffn_dim",
            stream=streams[1],
            feeds=("fc1",),
            before=("self_attn",),
            empties={"fc1": 1, "fc2": 1},
            when=when,
        ),
    )


@ARCHITECTURES.register("opt")
class OPT(Architecture):
    """Declares opt."""

    head_size_field = None
    stacks = (Stack("decoder.layers", (*_sites(first=True), *_sites(first=False))),)
