"""Why numbers are not finite: the culprit is named, and what to do about it."""

import pytest
import torch

from hf_mabprune.effects.broken import cause
from hf_mabprune.effects.pulls.replay import ReplayPulls
from hf_mabprune.tasks.batch import Batch
from tests.problems import problem
from tests.tasks.tiny_tasks import make_tokenizer, regressor, task_of


def test_a_broken_weight_is_named() -> None:
    model, task, batches, _ = problem("bert")
    with torch.no_grad():
        model.base_model.encoder.layer[1].output.dense.weight[0, 0] = torch.nan
    reason = cause(model, task, batches)
    assert "weight bert.encoder.layer.1.output.dense.weight holds numbers that are not finite" in reason


def test_broken_inputs_are_named() -> None:
    model, task, batches, _ = problem("vit")
    batches[1]["pixel_values"][0] = torch.nan
    assert cause(model, task, batches).startswith("pixel_values of the data holds numbers that are not finite")


@pytest.mark.parametrize(
    ("dtype", "remedy"), [(torch.float32, "weights that are too large"), (torch.float16, "use dtype float32")]
)
def test_the_module_where_an_overflow_begins_is_named(dtype: torch.dtype, remedy: str) -> None:
    model, task, batches, _ = problem("llama")
    with torch.no_grad():
        model.base_model.layers[1].mlp.up_proj.weight.mul_(1e3)
        model.base_model.layers[1].mlp.down_proj.weight.fill_(torch.finfo(dtype).max)
    name = str(dtype).removeprefix("torch.")
    reason = cause(model.to(dtype), task, batches)
    assert f"the output of model.layers.1.mlp.down_proj overflows {name}" in reason and remedy in reason


def test_labels_that_no_output_comes_near_are_named() -> None:
    model = regressor()
    ids = torch.full((2, 4), 6)
    batch = Batch(input_ids=ids, attention_mask=torch.ones_like(ids), labels=torch.tensor([1.0, 1e200]))
    assert "labels of up to inf" in cause(model, task_of(model, make_tokenizer("pair")), [batch])


def test_effects_on_broken_batches_alone_are_refused() -> None:
    model, task, batches, arms = problem("llama")  # whose labels are drawn, with many classes
    with torch.no_grad():
        model.lm_head.weight[0, 0] = torch.inf
    pulls = ReplayPulls(model, arms, task, batches)
    with pytest.raises(ValueError, match=r"no calibration batch has finite outputs.*weight lm_head\.weight"):
        pulls.effects(2, 0)
