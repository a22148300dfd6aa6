"""BART and its like: an encoder and a decoder that reads it, of text or of sound."""

from hf_mabprune.architectures.base import ARCHITECTURES, Architecture
from hf_mabprune.architectures.sites import Rows, SiteSpec, Stack, plain_heads, rows


def _stack(side: str, attentions: tuple[str, ...], flag: str, norms_first: bool) -> Stack:
    """Declares the encoder or the decoder: some attentions, then the FFN, with norms before or behind them."""
    sites = tuple(
        plain_heads(
            name,
            "out_proj",
            f"{side}_attention_heads",
            stream=f"{name}_layer_norm" if norms_first else f"{name}.q_proj",
            before=attentions[:place],
            empties={name: 2},
            **_read(name) if name == "encoder_attn" else {},
        )
        for place, name in enumerate(attentions)
    )
    ffn = SiteSpec(
        "neuron",
        "fc2",
        rows("fc1"),
        units=f"{side}_ffn_dim",
        stream="final_layer_norm" if norms_first else "fc1",
        feeds=("fc1",),
        before=attentions,
        empties={"fc1": 1, "fc2": 1},
    )
    return Stack(f"{side}.layers", (*sites, ffn), flag=flag, count=f"{side}_layers")


def _read(name: str) -> dict[str, object]:
    """Says what an attention to the encoder has of its own."""
    return {
        "rows": (Rows(f"{name}.q_proj"), *(Rows(f"{name}.{each}_proj", elsewhere=True) for each in "kv")),
        "when": lambda config: config.is_encoder_decoder,
        "reason": "no encoder is read",
    }


def _stacks(norms_first: bool, flag: str = "attention_mask") -> tuple[Stack, Stack]:
    """Declares both stacks; `flag` is that of the encoder."""
    return (
        _stack("encoder", ("self_attn",), flag, norms_first),
        _stack("decoder", ("self_attn", "encoder_attn"), "decoder_attention_mask", norms_first),
    )


@ARCHITECTURES.register("bart", "marian")
class Bart(Architecture):
    """Declares bart and marian, whose norms stand behind the sums."""

    head_size_field = None
    stacks = _stacks(norms_first=False)


@ARCHITECTURES.register("mbart", "pegasus", "m2m_100")
class MBart(Architecture):
    """Declares mbart, pegasus and m2m_100, whose norms come first."""

    head_size_field = None
    stacks = _stacks(norms_first=True)


@ARCHITECTURES.register("whisper")
class Whisper(Architecture):
    """Declares whisper, which hears: all positions of the encoder count."""

    head_size_field = None
    stacks = _stacks(norms_first=True, flag="")
