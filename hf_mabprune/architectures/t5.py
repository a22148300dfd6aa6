"""T5: an encoder and a decoder that reads it, with position biases that the first layer of a stack makes for all."""

from hf_mabprune.architectures.base import ARCHITECTURES, Architecture
from hf_mabprune.architectures.sites import COLUMNS, UNITS, Rows, SiteSpec, Stack, rows


def _heads(place: int, name: str) -> SiteSpec:
    """Declares the heads of the attention at a place of the layer; the first attention has biases by position.

    Only the first layer has a table of them, one column a head. Where heads differ by layer each layer gets its own
    columns, as a table of its own, and is not handed those of the first.
    """
    path, bias = f"layer.{place}.{name}", f"layer.{place}.{name}.relative_attention_bias"
    first = place == 0
    sizes: dict[str, str | bool] = {"n_heads": UNITS, "inner_dim": COLUMNS}
    return SiteSpec(
        "head",
        f"{path}.o",
        (
            Rows(f"{path}.q"),
            *(Rows(f"{path}.{each}", elsewhere=not first) for each in "kv"),
            *((Rows(bias),) if first else ()),
        ),
        units="num_heads",
        block=path,
        stream=f"layer.{place}.layer_norm",
        before=() if first else ("layer.0",),
        attributes={path: {**sizes, "has_relative_attention_bias": True} if first else sizes},
        arguments={path: {"position_bias": False}},
        copies={bias: bias} if first else {},
    )


def _stack(side: str, attentions: tuple[SiteSpec, ...], flag: str) -> Stack:
    """Declares the encoder or the decoder: some attentions, then the FFN, gated or not."""
    last = f"layer.{len(attentions)}.DenseReluDense"
    ffn = SiteSpec(
        "neuron",
        f"{last}.wo",
        rows(f"{last}.wi", f"{last}.wi_0", f"{last}.wi_1"),
        units="d_ff",
        block=last,
        stream=f"layer.{len(attentions)}.layer_norm",
        before=tuple(f"layer.{place}" for place in range(len(attentions))),
        empties={last: 1},
    )
    count = "num_layers" if side == "encoder" else "num_decoder_layers"
    return Stack(f"{side}.block", (*attentions, ffn), flag=flag, count=count)


@ARCHITECTURES.register("t5", "mt5")
class T5(Architecture):
    """Declares t5 and mt5: self-attention and FFN of both stacks, and the decoder's attention to the encoder."""

    head_size_field = "d_kv"
    stacks = (
        _stack("encoder", (_heads(0, "SelfAttention"),), "attention_mask"),
        _stack("decoder", (_heads(0, "SelfAttention"), _heads(1, "EncDecAttention")), "decoder_attention_mask"),
    )
