"""What recovery trains, and in which precision the rest waits."""

import pytest
import torch
from torch import nn

from hf_mabprune.config import RecoveryConfig
from hf_mabprune.recovery.memory import examples_together, memory
from hf_mabprune.recovery.trained import trained
from hf_mabprune.tasks.sampling import batches_of
from tests.recovery.case import Case
from tests.tiny_models import head_of, inputs_for, tiny_model

LIGHT = RecoveryConfig(method="lora")


@pytest.mark.parametrize("model_type", ["llama", "bert", "gpt2", "t5", "mixtral", "qwen2_moe", "deberta-v2", "vit"])
def test_weights_that_take_no_steps_stay_in_bfloat16_and_nothing_else_changes(model_type: str) -> None:
    found = []
    for half in (False, True):
        model = tiny_model(model_type, head_of(model_type)).bfloat16()
        inputs = inputs_for(model, head_of(model_type))
        before = {name: weight.clone() for name, weight in model.state_dict().items()}
        with trained(model, LIGHT, half):
            with torch.autocast("cpu", torch.bfloat16):
                outputs = model(**inputs)[0]
            outputs.float().square().sum().backward()
            gradients = [each.grad.clone() for each in model.parameters() if each.grad is not None]
            linear = {module.weight.dtype for module in model.modules() if isinstance(module, nn.Linear)}
            stepping = {each.dtype for each in model.parameters() if each.requires_grad}
        assert linear <= {torch.bfloat16 if half else torch.float32} and stepping == {torch.float32}
        for name, weight in model.state_dict().items():
            assert torch.equal(weight.to(before[name].dtype), before[name]), name
        found.append([outputs.detach(), *gradients])
    assert len(found[0]) == len(found[1]) > 3
    for wide, narrow in zip(*found, strict=True):
        assert wide.dtype == narrow.dtype
        torch.testing.assert_close(wide, narrow)


def test_examples_are_differentiated_as_many_at_a_time_as_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    dense = Case("llama").dense  # 2 layers of 32 numbers a token
    monkeypatch.setitem(examples_together.__globals__["NUMBERS"], "cpu", 4 * 64 * 8)
    assert [examples_together(dense, 12, tokens) for tokens in (0, 1, 8, 15, 100)] == [12, 12, 4, 3, 1]


@pytest.mark.parametrize("model_type", ["bert", "llama"])
def test_memory_of_a_training_grows_with_what_it_holds(model_type: str) -> None:
    case = Case(model_type)
    batches, parameters = batches_of(case.task, case.examples, 4), case.dense.num_parameters()
    flags = [parameter.requires_grad for parameter in case.dense.parameters()]

    def of(method: str, size: int, longest: int) -> int:
        return memory(case.dense, case.task, batches, RecoveryConfig(method=method), size, longest)

    assert of("full", 1, 8) > 16 * parameters and of("lora", 1, 8) < of("full", 1, 8)
    one, two, long = of("lora", 1, 8), of("lora", 2, 8), of("lora", 1, 16)
    assert two - one == pytest.approx(long - one, abs=2) and two > one
    assert flags == [parameter.requires_grad for parameter in case.dense.parameters()]
