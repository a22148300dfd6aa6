"""What the nouns can say beyond what a family in the package says today, on a family declared for the test alone.

Experts with biases whose gate and up alternate, and bare parameters a head: gpt_oss.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from transformers import AutoConfig, PreTrainedModel

from hf_mabprune.architectures import ARCHITECTURES, Architecture, architecture_of
from hf_mabprune.architectures.sites import UNITS, Rows, SiteSpec, Stack, grouped_heads
from hf_mabprune.checkpoints import modeling_pruned
from hf_mabprune.checkpoints.load import register_auto_classes
from hf_mabprune.checkpoints.save import save_checkpoint
from hf_mabprune.effects.masking import keep_masks, masked
from hf_mabprune.effects.taps import tapped
from hf_mabprune.surgery.cut import cut
from tests.seeds import moved
from tests.tiny_models import keep_for, outputs_of
from tests.tiny_sizes import GROUPED

HEADS = grouped_heads("self_attn")
EXPERTS = SiteSpec(
    "neuron",
    "down_proj",
    (Rows("gate_up_proj", (UNITS, UNITS), interleaved=True),),
    "intermediate_size",
    experts="mlp.experts",
    block="mlp",
    before=("self_attn",),
    attributes={"mlp.experts": {"intermediate_size": UNITS}},
)
SINKS = replace(HEADS, rows=(*HEADS.rows, Rows("self_attn.sinks", size=1)))
SIZES = GROUPED | {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8}
SIZES |= {"layer_types": ["sliding_attention", "full_attention"]}


@pytest.fixture
def model() -> Iterator[PreTrainedModel]:
    """A random model of a type that is known while the test lasts."""
    family = type("Family", (Architecture,), {"stacks": (Stack("layers", (SINKS, EXPERTS)),)})
    ARCHITECTURES.names()
    ARCHITECTURES.register("gpt_oss")(family)
    torch.manual_seed(moved(0))
    made = transformers.AutoModel.from_config(AutoConfig.for_model("gpt_oss", **SIZES)).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    yield made
    del ARCHITECTURES._entries["gpt_oss"]


def test_masked_equals_pruned_equals_reloaded(model: PreTrainedModel, tmp_path: Path) -> None:
    keep, dense = keep_for(model, "per_layer"), outputs_of(model)
    with masked(model, masks=keep_masks(model, keep)):
        by_mask = outputs_of(model)
    small = cut(model, keep, "per_layer")
    save_checkpoint(small, tmp_path, None, torch.float32)
    register_auto_classes()
    assert (by_mask - outputs_of(small)).abs().max() < 1e-5
    again = modeling_pruned.model_class(type(model)).from_pretrained(tmp_path).eval()
    assert (outputs_of(small) - outputs_of(again)).abs().max() < 1e-6
    assert (dense - by_mask).abs().max() > 1e-3
    assert {site.kind for site in architecture_of(model).sites(model)} == {"neuron", "head"}


def test_taps_see_examples_and_positions_where_a_model_flattens_them(model: PreTrainedModel) -> None:
    seen: dict[str, tuple[int, ...]] = {}

    def tap(name: str, hidden: torch.Tensor) -> torch.Tensor:
        seen[name] = tuple(hidden.shape)
        return hidden

    sites = architecture_of(model).sites(model)
    taps = {site.name: lambda hidden, name=site.name: tap(name, hidden) for site in sites}
    dense = outputs_of(model)
    with tapped(model, taps):
        assert (outputs_of(model) - dense).abs().max() < 1e-5
    assert seen == {site.name: (2, 9, site.columns) for site in sites}
