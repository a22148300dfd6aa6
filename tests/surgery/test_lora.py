"""A LoRA of the dense model cut to the pruned one: the same as masking the dense model that has it."""

import pytest
import torch
from transformers import PreTrainedModel

from hf_mabprune.carry import with_lora
from hf_mabprune.effects.masking import keep_masks, masked
from hf_mabprune.surgery.cut import cut
from hf_mabprune.surgery.lora import A, B, kept_sides, sliced
from tests.problems import problem, selection
from tests.seeds import moved

RANK = 3


def factors_of(model: PreTrainedModel, paths: list[str]) -> dict[str, torch.Tensor]:
    """Random factors, large enough to change what the model says."""
    generator, found = torch.Generator().manual_seed(moved(5)), {}
    for path in paths:
        module = model.get_submodule(path)
        sizes = module.weight.shape
        outputs, inputs = sizes if isinstance(module, torch.nn.Linear) else reversed(sizes)
        found[path + A] = torch.randn(RANK, inputs, generator=generator)
        found[path + B] = torch.randn(outputs, RANK, generator=generator) / 10
    return found


@pytest.mark.parametrize("model_type", ["bert", "llama", "gpt2", "gpt_neox", "phi3"])
def test_the_pruned_model_with_it_is_the_dense_one_with_it_masked(model_type: str) -> None:
    peft = pytest.importorskip("peft", reason="pip install 'hf_mabprune[peft]'")
    model, task, batches, _ = problem(model_type)
    heads = ("lm_head", "embed_out", "classifier", "score")
    linear = (
        (torch.nn.Linear, type(model.get_submodule("transformer.h.0.attn.c_attn")))
        if model_type == "gpt2"
        else (torch.nn.Linear,)
    )
    paths = [name for name, module in model.named_modules() if isinstance(module, linear) and not name.endswith(heads)]
    config = peft.LoraConfig(r=RANK, target_modules=paths, fan_in_fan_out=model_type == "gpt2")
    keep, factors = selection(model, "per_layer"), factors_of(model, paths)
    sides = kept_sides(model, keep, "per_layer", paths)
    assert any(
        len(kept.inputs) * len(kept.outputs) < model.get_parameter(f"{path}.weight").numel()
        for path, kept in sides.items()
    )
    full = with_lora(model, config, factors, {})
    small = with_lora(cut(model, keep, "per_layer"), config, sliced(factors, sides), {})
    with torch.no_grad():
        for batch in batches:
            inputs = task.inputs(batch)
            with masked(full, masks=keep_masks(full, keep)):
                expected = full(**inputs)[0]
            assert not torch.allclose(expected, model(**inputs)[0], atol=1e-2)
            torch.testing.assert_close(small(**inputs)[0], expected, atol=2e-5, rtol=1e-4)


def test_a_lora_of_an_embedding_is_refused() -> None:
    model, *_ = problem("llama")
    with pytest.raises(ValueError, match=r"LoRA of model.embed_tokens is of a Embedding; only those of linear layers"):
        kept_sides(model, {}, "per_layer", ["model.embed_tokens"])
