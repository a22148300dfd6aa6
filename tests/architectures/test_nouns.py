"""What the nouns can say beyond what a family in the package says today, on families declared for the test alone.

Interleaved rows (gpt_neox), flattened inputs (opt), settings that a forward reads off its config (phi3), an argument
with one entry a head (mpnet), bare parameters a head, experts with biases (gpt_oss), stacks with sub-configs (clip).
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from transformers import AutoConfig, PreTrainedModel

from hf_mabprune.architectures import ARCHITECTURES, Architecture, architecture_of
from hf_mabprune.architectures.sites import COLUMNS, GROUPS, UNITS, Rows, SiteSpec, Stack, grouped_heads, rows
from hf_mabprune.checkpoints import modeling_pruned
from hf_mabprune.checkpoints.load import register_auto_classes
from hf_mabprune.checkpoints.save import save_checkpoint
from hf_mabprune.effects.masking import keep_masks, masked
from hf_mabprune.effects.taps import tapped
from hf_mabprune.surgery.cut import cut
from tests.seeds import moved
from tests.tiny_models import GROUPED, SIZES, TOKENS, keep_for

HEADS = grouped_heads("self_attn")
GATED = SiteSpec(
    "neuron",
    "mlp.down_proj",
    (Rows("mlp.gate_up_proj", (UNITS, UNITS)),),
    "intermediate_size",
    block="mlp",
    before=("self_attn",),
)
FUSED = SiteSpec(
    "head",
    "attention.dense",
    (Rows("attention.query_key_value", (UNITS, UNITS, UNITS), interleaved=True),),
    "num_attention_heads",
    block="attention",
)
NEOX = SiteSpec("neuron", "mlp.dense_4h_to_h", rows("mlp.dense_h_to_4h"), "intermediate_size", before=("attention",))
PLAIN = SiteSpec(
    "head",
    "self_attn.out_proj",
    rows("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "num_attention_heads",
    attributes={"self_attn": {"num_heads": UNITS}},
)
FLAT = SiteSpec("neuron", "fc2", rows("fc1"), "ffn_dim", feeds=("fc1",), before=("self_attn",))
QKV = replace(
    HEADS,
    rows=(Rows("self_attn.qkv_proj", (UNITS, GROUPS, GROUPS)),),
    attributes={"self_attn": {"num_key_value_heads": GROUPS}},
    settings={"self_attn": {"num_attention_heads": UNITS}},
)
BIASED = SiteSpec(
    "head",
    "attention.attn.o",
    rows("attention.attn.q", "attention.attn.k", "attention.attn.v"),
    "num_attention_heads",
    attributes={"attention.attn": {"num_attention_heads": UNITS, "all_head_size": COLUMNS}},
    arguments={"attention": {"position_bias": True}},
)
EXPERTS = replace(
    GATED,
    output="down_proj",
    rows=(Rows("gate_up_proj", (UNITS, UNITS), interleaved=True),),
    experts="mlp.experts",
    attributes={"mlp.experts": {"intermediate_size": UNITS}},
)
TOWER = SiteSpec("neuron", "mlp.fc2", rows("mlp.fc1"), "intermediate_size")
PART = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
CASES = {  # model type -> stacks, head_size_field, sizes
    "gpt_neox": ((Stack("layers", (FUSED, NEOX)),), None, SIZES),
    "opt": (
        (Stack("decoder.layers", (PLAIN, FLAT)),),
        None,
        TOKENS | {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 48}
        | {"word_embed_proj_dim": 32, "max_position_embeddings": 64},
    ),
    "phi3": ((Stack("layers", (QKV, GATED)),), "head_dim", GROUPED),
    "mpnet": ((Stack("encoder.layer", (BIASED,)),), None, SIZES),
    "gpt_oss": (
        (Stack("layers", (replace(HEADS, rows=(*HEADS.rows, Rows("self_attn.sinks", size=1))), EXPERTS)),),
        "head_dim",
        GROUPED | {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8}
        | {"layer_types": ["sliding_attention", "full_attention"]},
    ),
    "clip": (
        (
            Stack("text_model.encoder.layers", (PLAIN, TOWER), "text_config"),
            Stack("vision_model.encoder.layers", (PLAIN, TOWER), "vision_config"),
        ),
        None,
        {"text_config": SIZES, "vision_config": PART | {"image_size": 16, "patch_size": 4, "intermediate_size": 64}},
    ),
}  # fmt: skip


@pytest.fixture
def model(request: pytest.FixtureRequest) -> Iterator[PreTrainedModel]:
    """A random model of a type that is known while the test lasts."""
    model_type = request.param
    stacks, field, sizes = CASES[model_type]
    family = type("Family", (Architecture,), {"stacks": stacks, "head_size_field": field})
    ARCHITECTURES.names()
    ARCHITECTURES.register(model_type)(family)
    torch.manual_seed(moved(0))
    made = transformers.AutoModel.from_config(AutoConfig.for_model(model_type, **sizes)).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    yield made
    del ARCHITECTURES._entries[model_type]


def outputs(model: PreTrainedModel) -> torch.Tensor:
    generator = torch.Generator().manual_seed(moved(1))
    ids = torch.randint(3, 60, (2, 9), generator=generator)
    ids[:, -1] = 2
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if hasattr(model.config, "vision_config"):
        inputs["pixel_values"] = torch.rand(2, 3, 16, 16, generator=generator)
    with torch.no_grad():
        found = model(**inputs).to_tuple()
    return torch.cat([part.flatten() for part in found if torch.is_tensor(part) and part.is_floating_point()])


@pytest.mark.parametrize("model", CASES, indirect=True)
def test_masked_equals_pruned_equals_reloaded(model: PreTrainedModel, tmp_path: Path) -> None:
    keep, dense = keep_for(model, "per_layer"), outputs(model)
    with masked(model, masks=keep_masks(model, keep)):
        by_mask = outputs(model)
    small = cut(model, keep, "per_layer")
    save_checkpoint(small, tmp_path, None, torch.float32)
    register_auto_classes()
    assert (by_mask - outputs(small)).abs().max() < 1e-5
    again = modeling_pruned.model_class(type(model)).from_pretrained(tmp_path).eval()
    assert (outputs(small) - outputs(again)).abs().max() < 1e-6
    assert (dense - by_mask).abs().max() > 1e-3
    assert {site.kind for site in architecture_of(model).sites(model)} <= {"neuron", "head"}
    if hasattr(model.config, "vision_config"):
        assert {site.field for site in architecture_of(model).sites(model)} >= {
            "text_config.intermediate_size", "vision_config.intermediate_size",
        }  # fmt: skip


@pytest.mark.parametrize("model", ["opt", "gpt_oss"], indirect=True)
def test_taps_see_examples_and_positions_where_a_model_flattens_them(model: PreTrainedModel) -> None:
    seen: dict[str, tuple[int, ...]] = {}

    def tap(name: str, hidden: torch.Tensor) -> torch.Tensor:
        seen[name] = tuple(hidden.shape)
        return hidden

    sites = architecture_of(model).sites(model)
    taps = {site.name: lambda hidden, name=site.name: tap(name, hidden) for site in sites}
    dense = outputs(model)
    with tapped(model, taps):
        assert (outputs(model) - dense).abs().max() < 1e-5
    assert seen == {site.name: (2, 9, site.columns) for site in sites}
