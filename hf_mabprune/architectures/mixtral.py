"""Mixtral and its like: a mixture of experts in the place of the FFN; neurons inside experts, and whole experts."""

from hf_mabprune.architectures.base import ARCHITECTURES, Architecture
from hf_mabprune.architectures.experts import routed_experts, shared_expert
from hf_mabprune.architectures.sites import Rows, Stack, gated_ffn, grouped_heads


@ARCHITECTURES.register("mixtral")
class Mixtral(Architecture):
    """Declares mixtral. A token goes to a few experts, whose products are summed with the weights of the router."""

    stacks = (
        Stack("layers", (grouped_heads("self_attn"), *routed_experts("num_local_experts", "intermediate_size"))),
    )


@ARCHITECTURES.register("phimoe")
class PhiMoe(Architecture):
    """Declares phimoe, whose router chooses one expert after the other."""

    stacks = (
        Stack(
            "layers",
            (
                grouped_heads("self_attn"),
                *routed_experts("num_local_experts", "intermediate_size", router="mlp.router"),
            ),
        ),
    )


@ARCHITECTURES.register("granitemoe")
class GraniteMoe(Architecture):
    """Declares granitemoe, which multiplies what it adds: no refit makes up for what is below."""

    stacks = (
        Stack(
            "layers",
            (
                grouped_heads("self_attn", stream=""),
                *routed_experts("num_local_experts", "intermediate_size", "block_sparse_moe.router", stream=""),
            ),
        ),
    )


@ARCHITECTURES.register("olmoe")
class Olmoe(Architecture):
    """Declares olmoe: norms of all queries and of all keys together, so that heads stay."""

    stacks = (
        Stack(
            "layers",
            (
                grouped_heads(
                    "self_attn",
                    when=lambda config: False,
                    reason="q_norm and k_norm run over all heads together",
                ),
                *routed_experts("num_experts", "intermediate_size"),
            ),
        ),
    )


@ARCHITECTURES.register("qwen3_moe")
class Qwen3Moe(Architecture):
    """Declares qwen3_moe. Layers that its config names have an FFN instead."""

    stacks = (
        Stack(
            "layers",
            (grouped_heads("self_attn"), gated_ffn(), *routed_experts("num_local_experts", "moe_intermediate_size")),
        ),
    )


@ARCHITECTURES.register("qwen2_moe")
class Qwen2Moe(Architecture):
    """Declares qwen2_moe, which multiplies what its shared expert gives: no refit there makes up for what is below."""

    stacks = (
        Stack(
            "layers",
            (
                grouped_heads("self_attn"),
                gated_ffn(),
                *routed_experts(
                    "num_experts", "moe_intermediate_size", shared="shared_expert", stream="post_attention_layernorm"
                ),
                shared_expert("mlp.shared_expert", "shared_expert_intermediate_size", stream=""),
            ),
        ),
    )


@ARCHITECTURES.register("gpt_oss")
class GptOss(Architecture):
    """Declares gpt_oss: experts with biases, gate and up of a neuron side by side; each query head has a sink."""

    HEADS = grouped_heads("self_attn")
    stacks = (
        Stack(
            "layers",
            (
                grouped_heads("self_attn", rows=(*HEADS.rows, Rows("self_attn.sinks"))),
                *routed_experts(
                    "num_local_experts",
                    "intermediate_size",
                    router="mlp.router",
                    interleaved=True,
                    width="intermediate_size",
                ),
            ),
        ),
    )
