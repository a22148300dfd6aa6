"""Wav2Vec2: an encoder of sound."""

from hf_mabprune.architectures.base import ARCHITECTURES, Architecture
from hf_mabprune.architectures.sites import SiteSpec, Stack, plain_heads, rows


def _sites(first: bool) -> tuple[SiteSpec, SiteSpec]:
    """Declares the sites of a layer whose norms come first, or behind the sums."""

    def when(config: object) -> bool:
        return bool(getattr(config, "do_stable_layer_norm", False)) == first

    streams = ("layer_norm", "final_layer_norm") if first else ("attention.q_proj", "feed_forward.intermediate_dense")
    return (
        plain_heads("attention", "out_proj", stream=streams[0], when=when),
        SiteSpec(
            "neuron",
            "feed_forward.output_dense",
            rows("feed_forward.intermediate_dense"),
            units="intermediate_size",
            block="feed_forward",
            stream=streams[1],
            before=("attention",),
            when=when,
        ),
    )


@ARCHITECTURES.register("wav2vec2")
class Wav2Vec2(Architecture):
    """Declares wav2vec2. All positions count: which of them are padding is known before the convolutions alone."""

    head_size_field = None
    stacks = (Stack("encoder.layers", (*_sites(first=True), *_sites(first=False)), flag=""),)
