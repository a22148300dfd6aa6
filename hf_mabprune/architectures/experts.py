"""Sites of a mixture of experts as families declare them: routed experts, their neurons, and shared experts."""

from typing import Any

from hf_mabprune.architectures.sites import UNITS, Rows, SiteSpec, gated_ffn, rows


def routed_experts(
    count: str,
    units: str,
    router: str = "mlp.gate",
    shared: str = "",
    stream: str | None = None,
    interleaved: bool = False,
    width: str = "intermediate_dim",
    **whole: Any,
) -> tuple[SiteSpec, SiteSpec]:
    """Declares the neurons of each expert and the experts, as Mixtral and most mixtures after it have them.

    Args:
        count: Config field that counts the experts.
        units: Config field that counts the neurons of each.
        router: Module that sends positions to experts, which lie beside it.
        shared: Module beside it that all positions go through.
        stream: As that of `SiteSpec`; where it is left out, that of Llama, or none beside a shared module.
        interleaved: Whether gate and up of a neuron are neighbours.
        width: Attribute of the experts that holds their number of neurons.
        whole: Other attributes of `SiteSpec`, for whole experts.
    """
    block = router.rpartition(".")[0]
    experts, around = f"{block}.experts", f"{block}.{shared}"
    before = ("self_attn", around) if shared else ("self_attn",)
    inside = ("gate_up_proj", "gate_up_proj_bias", "down_proj", "down_proj_bias")
    neurons = SiteSpec(
        "neuron",
        "down_proj",
        (Rows("gate_up_proj", (UNITS, UNITS), interleaved=interleaved),),
        units=units,
        experts=experts,
        block=experts if shared else block,
        before=before,
        attributes={experts: {width: UNITS}},
    )
    return neurons, SiteSpec(
        "expert",
        router,
        (
            *rows(router, f"{router}.e_score_correction_bias", *(f"{experts}.{name}" for name in inside)),
            Rows(f"{router}.moe_statics.e_score_correction_bias", dim=1),
        ),
        units=count,
        experts=experts,
        block=experts if shared else block,
        stream=("" if shared else "post_attention_layernorm") if stream is None else stream,
        before=before,
        attributes={experts: {"num_experts": UNITS}, router: {"num_experts": UNITS}},
        **whole,
    )


def shared_expert(path: str, units: str, **more: Any) -> SiteSpec:
    """Declares the neurons of a gated FFN that all positions go through, beside routed experts.

    Args:
        path: Its module, relative to the layer.
        units: Config field that counts its neurons; empty where there is none.
        more: Other attributes of `SiteSpec`.
    """
    return gated_ffn(
        output=f"{path}.down_proj",
        rows=rows(f"{path}.gate_proj", f"{path}.up_proj"),
        units=units,
        block=path,
        before=("self_attn", f"{path.rpartition('.')[0]}.experts"),
        attributes={path: {"intermediate_size": UNITS}},
        empties={path: 1},
        **more,
    )


def shared_experts(path: str, units: str, count: str) -> tuple[SiteSpec, SiteSpec]:
    """Declares shared experts that are one FFN, as wide as so many routed ones: stock configs say the width of one.

    Args:
        path: Its module, relative to the layer.
        units: Config field that counts the neurons of one expert.
        count: Config field that counts the shared experts.
    """
    return (
        shared_expert(path, units, when=lambda config: getattr(config, count) == 1),
        shared_expert(path, "", when=lambda config: getattr(config, count) != 1),
    )
