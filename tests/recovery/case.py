"""A tiny dense model and a pruned copy of it, to be recovered."""

from typing import Any

import torch
from accelerate import Accelerator
from datasets import Dataset
from transformers import PreTrainedModel

from hf_mabprune.config import RecoveryConfig
from hf_mabprune.evaluation.quality import Evaluation, evaluate, forward_of
from hf_mabprune.recovery.course import Keeper
from hf_mabprune.recovery.recover import RecoveryFigures, recover
from hf_mabprune.surgery.cut import cut
from hf_mabprune.tasks.base import Task
from hf_mabprune.tasks.sampling import batches_of
from tests.problems import sentences
from tests.tasks.tiny_tasks import make_tokenizer, task_of
from tests.tiny_models import keep_for, tiny_model

SETTINGS = RecoveryConfig(learning_rate=3e-3, batch_size=8, epochs=2)
HEADS = {"bert": "AutoModelForSequenceClassification", "llama": "AutoModelForCausalLM"}


class Case:
    """A tiny dense, a pruned copy of it, and encoded examples."""

    def __init__(self, model_type: str = "bert", layout: str = "per_layer", count: int = 48, **changes: Any) -> None:
        text = {} if model_type == "bert" else {"columns": {"text": "sentence"}, "max_length": 8}
        self.dense: PreTrainedModel = tiny_model(model_type, HEADS[model_type], **changes)
        if model_type == "bert":  # whose outputs hardly depend on what is cut, else
            with torch.no_grad():
                for parameter in self.dense.parameters():
                    parameter.add_(0.2 * torch.randn_like(parameter))
        self.task: Task = task_of(self.dense, make_tokenizer("pair" if model_type == "bert" else "plain"), **text)
        self.examples = self.task.encode(Dataset.from_dict(sentences(count, 0)))
        self.small = cut(self.dense, keep_for(self.dense, layout), layout)  # type: ignore[arg-type]

    def recover(
        self, settings: RecoveryConfig = SETTINGS, seed: int = 0, kept: Keeper | None = None, **changes: Any
    ) -> RecoveryFigures:
        settings = RecoveryConfig(**{**settings.model_dump(), **changes})
        accelerator = Accelerator(cpu=True)
        return recover(self.small, self.dense, self.task, self.examples, settings, accelerator, seed, kept)

    def measure(self) -> Evaluation:
        batches, accelerator = batches_of(self.task, self.examples, 16), Accelerator(cpu=True)
        models = [forward_of(model, self.task) for model in (self.small, self.dense)]
        return evaluate(models[0], self.task, batches, accelerator, models[1], intervals=False)

    def weights(self) -> dict[str, torch.Tensor]:
        return {name: weight.detach().clone() for name, weight in self.small.state_dict().items()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
