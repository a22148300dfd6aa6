"""CLIP and SigLIP: a tower of text and one of images, together or alone."""

from hf_mabprune.architectures.base import ARCHITECTURES, Architecture
from hf_mabprune.architectures.sites import SiteSpec, Stack, plain_heads, rows

FFN = SiteSpec(
    "neuron",
    "mlp.fc2",
    rows("mlp.fc1"),
    units="intermediate_size",
    block="mlp",
    stream="layer_norm2",
    before=("self_attn",),
    empties={"mlp": 1},
)
SITES = (plain_heads("self_attn", "out_proj", stream="layer_norm1", empties={"self_attn": 2}), FFN)
POOL = SiteSpec("neuron", "mlp.fc2", rows("mlp.fc1"), units="intermediate_size", block="mlp", stream="layernorm")


@ARCHITECTURES.register("clip", "clip_text_model", "clip_vision_model", "siglip", "siglip_vision_model")
class Clip(Architecture):
    """Declares clip and siglip, together or a tower alone. What reads siglip's images has an FFN as wide as theirs."""

    head_size_field = None
    stacks = (
        Stack("vision_model.encoder.layers", SITES, "vision_config", flag=""),
        Stack("vision_model.head", (POOL,), "vision_config", flag=""),
        Stack("text_model.encoder.layers", SITES, "text_config"),
        Stack("encoder.layers", SITES),
        Stack("head", (POOL,), flag=""),
    )
