"""DeepSeek and its like: routed experts beside shared ones, behind first layers with an FFN."""

from hf_mabprune.architectures.base import ARCHITECTURES, Architecture
from hf_mabprune.architectures.experts import routed_experts, shared_experts
from hf_mabprune.architectures.sites import UNITS, Rows, SiteSpec, Stack, gated_ffn, grouped_heads, rows

LATENT = SiteSpec(
    "head",
    "self_attn.o_proj",
    (*rows("self_attn.q_proj", "self_attn.q_b_proj"), Rows("self_attn.kv_b_proj", elsewhere=True)),
    units="num_attention_heads",
    groups="num_key_value_heads",
    block="self_attn",
    stream="input_layernorm",
    attributes={"self_attn": {"num_heads": UNITS}},
)
FFNS = (
    gated_ffn(),
    *routed_experts(
        "n_routed_experts",
        "moe_intermediate_size",
        shared="shared_experts",
        when=lambda config: (config.n_group or 1) == 1,
        reason="they are routed in groups, which keep one size (n_group)",
    ),
    *shared_experts("mlp.shared_experts", "moe_intermediate_size", "n_shared_experts"),
)


@ARCHITECTURES.register("deepseek_v2", "deepseek_v3")
class DeepSeek(Architecture):
    """Declares deepseek_v2 and deepseek_v3: heads share one latent key and value, which stays.

    One shared expert is as wide as a routed one in a stock model; of several, stock configs say no widths.
    """

    head_size_field = "v_head_dim"
    stacks = (Stack("layers", (LATENT, *FFNS)),)


@ARCHITECTURES.register("glm4_moe", "dots1")
class GlmMoe(Architecture):
    """Declares glm4_moe and dots1: attention as Llama's, experts as DeepSeek's."""

    stacks = (Stack("layers", (grouped_heads("self_attn"), *FFNS)),)


@ARCHITECTURES.register("ernie4_5_moe")
class ErnieMoe(Architecture):
    """Declares ernie4_5_moe, whose router adds a bias to what it chooses by."""

    stacks = (
        Stack(
            "layers",
            (
                grouped_heads("self_attn"),
                gated_ffn(),
                *routed_experts("moe_num_experts", "moe_intermediate_size", shared="shared_experts"),
                *shared_experts("mlp.shared_experts", "moe_intermediate_size", "moe_num_shared_experts"),
            ),
        ),
    )
