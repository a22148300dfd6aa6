"""Recovery of models that are no stack of layers over tokens, and of heads of all kinds."""

import copy

import pytest
import torch
from accelerate import Accelerator
from transformers import PreTrainedModel

from hf_mabprune.config import RecoveryConfig
from hf_mabprune.evaluation.quality import evaluate, forward_of
from hf_mabprune.recovery.recover import recover
from hf_mabprune.recovery.trainer import DistillationTrainer
from hf_mabprune.tasks.sampling import batches_of
from tests.seeds import moved
from tests.tasks.tiny_tasks import CASES

pytestmark = pytest.mark.whole
ACCELERATOR = Accelerator(cpu=True)
STEPS = 60


def without_dropout(model: PreTrainedModel) -> PreTrainedModel:
    """A copy that is the same in training mode."""
    copied = copy.deepcopy(model)
    for module in copied.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
    return copied


@pytest.mark.parametrize(
    "name",
    [
        "image_classification",
        "masked_lm",
        "multi_label_classification",
        "question_answering",
        "seq2seq",
        "token_classification",
    ],
)
def test_a_damaged_copy_becomes_the_dense_model_again(name: str) -> None:
    task, dense, data = CASES[name].build()
    small = without_dropout(dense)
    torch.manual_seed(moved(1))
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    examples = task.encode(data)
    batches = batches_of(task, examples, 5)

    def divergence() -> float:
        forwards = forward_of(small, task), forward_of(dense, task)
        return float(evaluate(forwards[0], task, batches, ACCELERATOR, forwards[1], intervals=False).kl.mean())

    before, settings = divergence(), RecoveryConfig(learning_rate=3e-3, batch_size=5, epochs=STEPS, alpha=1.0)
    figures = recover(small, dense, task, examples, settings, ACCELERATOR)
    assert divergence() < 0.6 * before
    assert figures.forward_tokens == 2 * figures.backward_tokens > 0
    if name == "image_classification":
        assert figures.backward_tokens == STEPS * len(examples), "where there are no tokens, examples count"


@pytest.mark.parametrize(
    ("name", "stacks"),
    [
        ("image_classification", ["hidden_states"]),
        ("seq2seq", ["encoder_hidden_states", "decoder_hidden_states"]),
        ("sequence_classification", ["hidden_states"]),
    ],
)
def test_the_states_of_every_stack_count_and_padding_does_not(
    name: str, stacks: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """States of the dense model moved by 10% at the tokens, and by anything at the padding: a distance of 0.01."""
    task, dense, data = CASES[name].build()
    real, found = DistillationTrainer._forward, []

    def moved_away(self: DistillationTrainer, model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> object:
        readout, states = real(self, model, batch)
        found.append(sorted(states))
        if model is dense:
            return readout, states
        for stack, layers in states.items():
            mask = batch.get("decoder_attention_mask" if stack.startswith("decoder") else "attention_mask")
            factor = torch.tensor(1.1) if mask is None else torch.where(mask.bool(), 1.1, 5.0).unsqueeze(-1)
            states[stack] = [factor * layer for layer in layers]
        return readout, states

    monkeypatch.setattr(DistillationTrainer, "_forward", moved_away)
    settings = RecoveryConfig(learning_rate=1e-12, batch_size=5, max_steps=1, alpha=1.0, hidden_weight=1.0)
    figures = recover(without_dropout(dense), dense, task, task.encode(data), settings, ACCELERATOR)
    assert found == [sorted(stacks)] * 2
    assert figures.loss == pytest.approx(0.01, rel=1e-3)
