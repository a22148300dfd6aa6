"""Models as training leaves them: taken out of their wrappers where that is exact, else refused in one line."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.hooks import ModelHook, add_hook_to_module
from accelerate.state import AcceleratorState
from torch import distributed, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.utils import parametrizations
from torch.nn.utils import prune as torch_prune
from transformers import BertConfig, BertForSequenceClassification, PreTrainedModel

from hf_mabprune.runtime.wrappers import left_as_it_was, unwrap
from hf_mabprune.sparsity import sparsify
from tests.tiny_models import outputs_of, tiny_model

CLASSIFIER = "AutoModelForSequenceClassification"


@pytest.fixture
def model() -> PreTrainedModel:
    return tiny_model("bert", CLASSIFIER)


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    """A launch of one process."""
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.fixture
def mixed_precision() -> Iterator[Accelerator]:
    AcceleratorState._reset_state(reset_partial_state=True)
    yield Accelerator(cpu=True, mixed_precision="bf16")
    AcceleratorState._reset_state(reset_partial_state=True)


def check_taken_out(wrapped: Any, expected: torch.Tensor) -> PreTrainedModel:
    """Checks that what is inside gives the outputs of the model as it was, and that the wrapper stays as it is."""
    before = dict(vars(wrapped))
    plain = unwrap(wrapped)
    assert isinstance(plain, BertForSequenceClassification) and "forward" not in vars(plain)
    assert torch.equal(outputs_of(plain), expected)
    assert vars(wrapped).keys() == before.keys() and all(vars(wrapped)[name] is before[name] for name in before)
    return plain


def test_a_plain_model_is_itself(model: PreTrainedModel) -> None:
    assert unwrap(model) is model


def test_what_accelerate_has_prepared_for_mixed_precision(
    model: PreTrainedModel, mixed_precision: Accelerator
) -> None:
    expected = outputs_of(model)
    prepared = mixed_precision.prepare(model)
    assert not torch.equal(outputs_of(prepared), expected), "bfloat16 is seen"
    plain = check_taken_out(prepared, expected)
    assert plain.base_model is model.base_model, "weights are shared"
    assert not torch.equal(outputs_of(prepared), expected), "the user's own still computes in bfloat16"


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile, lambda model: nn.DataParallel(torch.compile(model))])
def test_wrappers_of_torch(wrap: Callable[..., Any], model: PreTrainedModel) -> None:
    assert check_taken_out(wrap(model), outputs_of(model)) is model


def test_a_wrapper_around_a_prepared_model(model: PreTrainedModel, mixed_precision: Accelerator) -> None:
    check_taken_out(torch.compile(mixed_precision.prepare(model)), outputs_of(tiny_model("bert", CLASSIFIER)))


@pytest.mark.usefixtures("group")
def test_a_model_of_distributed_training(model: PreTrainedModel) -> None:
    expected = outputs_of(model)
    assert check_taken_out(nn.parallel.DistributedDataParallel(model), expected) is model


def test_gradient_checkpointing_stays_as_it_is(model: PreTrainedModel) -> None:
    model.gradient_checkpointing_enable()
    model.enable_input_require_grads()
    assert unwrap(model) is model and model.is_gradient_checkpointing


@pytest.mark.usefixtures("group")
def test_a_sharded_model_is_refused(model: PreTrainedModel) -> None:
    fully_shard(model)
    with pytest.raises(ValueError, match=r"spread over processes|has the hook|was replaced"):
        unwrap(model)


class Wrapper(nn.Module):
    """Stands for those of packages that are not installed: deepspeed, fairscale, ..."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


class Adapted(nn.Module):
    """Stands for a PeftModel."""

    peft_config: dict[str, Any] = {}  # noqa: RUF012


def patched(model: PreTrainedModel) -> PreTrainedModel:
    own = model.forward
    model.forward = lambda *arguments, **named: own(*arguments, **named)
    return model


def patched_before_it_was_prepared(model: PreTrainedModel) -> PreTrainedModel:
    model._original_forward = patched(model).forward
    return model


def patched_inside(model: PreTrainedModel) -> PreTrainedModel:
    patched(model.bert.encoder.layer[1])
    return model


def hooked(model: PreTrainedModel) -> PreTrainedModel:
    model.bert.encoder.register_forward_hook(lambda module, given, output: output)
    return model


def moved_about(model: PreTrainedModel) -> PreTrainedModel:
    add_hook_to_module(model.bert.pooler, ModelHook())
    return model


def parametrized(model: PreTrainedModel) -> PreTrainedModel:
    parametrizations.weight_norm(model.classifier)
    return model


def masked_by_torch(model: PreTrainedModel) -> PreTrainedModel:
    torch_prune.random_unstructured(model.classifier, "weight", 0.5)
    return model


def under_masks(model: PreTrainedModel) -> PreTrainedModel:
    sparsify(model, 0.5)
    return model


def with_another_head(model: PreTrainedModel) -> PreTrainedModel:
    model.classifier = nn.Linear(32, 7)
    return model


def compiled_inside(model: PreTrainedModel) -> PreTrainedModel:
    model.bert.pooler = torch.compile(model.bert.pooler)
    return model


def with_a_replaced_layer(model: PreTrainedModel) -> PreTrainedModel:
    class Own(nn.Linear):
        pass

    model.classifier = Own(32, 2)
    return model


def packed(model: PreTrainedModel) -> PreTrainedModel:
    dense = model.bert.pooler.dense
    dense.weight = nn.Parameter(dense.weight.to(torch.int8), requires_grad=False)
    return model


def called_quantised(model: PreTrainedModel) -> PreTrainedModel:
    model.is_quantized = True
    return model


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda _: "bert-base-uncased", "model must be a PreTrainedModel of transformers, got str"),
        (lambda _: nn.Linear(2, 2), "model must be a PreTrainedModel of transformers, got Linear"),
        (Wrapper, "the model is inside a Wrapper, which spreads its weights"),
        (lambda _: Adapted(), "unmerged adapters. Merge them first"),
        (lambda model: model.to("meta"), "is on the meta device, without numbers"),
        (under_masks, "has the hook Held, which no checkpoint can hold: remove it first"),
        (patched, "the forward of the model was replaced"),
        (patched_before_it_was_prepared, "the forward of the model was replaced"),
        (patched_inside, "the forward of bert.encoder.layer.1 was replaced"),
        (hooked, "bert.encoder has the hook hooked.<locals>.<lambda>"),
        (moved_about, "bert.pooler is moved between devices by accelerate"),
        (parametrized, "classifier has parametrized weights"),
        (masked_by_torch, "classifier has the hook RandomUnstructured"),
        (with_another_head, "the model is not what its config describes: classifier.weight is [7, 32]"),
        (compiled_inside, "the forward of bert.pooler was replaced"),
        (with_a_replaced_layer, "classifier was replaced by a Own"),
        (packed, "bert.pooler.dense.weight holds torch.int8: packed weights cannot be cut"),
        (called_quantised, "the model is quantised"),
    ],
)
def test_what_cannot_be_taken_off_is_refused_in_one_line(
    change: Callable[..., Any], says: str, model: PreTrainedModel
) -> None:
    with pytest.raises(ValueError) as refused:
        unwrap(change(model))
    assert says in str(refused.value) and "\n" not in str(refused.value)


def test_a_class_that_is_not_made_from_a_config_alone_passes() -> None:
    class Own(BertForSequenceClassification):
        def __init__(self, config: BertConfig, extra: int) -> None:
            super().__init__(config)
            self.extra = extra

    config = BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48)
    assert unwrap(own := Own(config, 3)) is own


def test_every_module_gets_its_own_mode_back(model: PreTrainedModel) -> None:
    model.train()
    model.bert.embeddings.eval()
    with left_as_it_was(model):
        model.eval()
    assert model.training and model.classifier.training and not model.bert.embeddings.training
