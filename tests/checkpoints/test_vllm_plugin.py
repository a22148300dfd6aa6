"""What vLLM is told of per-layer checkpoints."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoConfig

from hf_mabprune.checkpoints.save import save_checkpoint
from hf_mabprune.checkpoints.vllm_plugin import BACKEND, register, served_classes
from hf_mabprune.surgery.cut import cut
from tests.problems import selection
from tests.tiny_models import tiny_model


@pytest.mark.parametrize(
    ("model_type", "head", "served"),
    [
        ("llama", "AutoModelForCausalLM", "TransformersForCausalLM"),
        ("bert", "AutoModelForSequenceClassification", "TransformersForSequenceClassification"),
        ("bert", "AutoModel", "TransformersEmbeddingModel"),
        ("mixtral", "AutoModelForCausalLM", "TransformersMoEForCausalLM"),
    ],
)
def test_the_class_that_a_checkpoint_names_is_registered(
    model_type: str, head: str, served: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(model_type, head)
    save_checkpoint(cut(model, selection(model, "per_layer"), "per_layer"), tmp_path, None, torch.float32)
    registered: dict[str, str] = {}
    monkeypatch.setitem(
        sys.modules, "vllm", SimpleNamespace(ModelRegistry=SimpleNamespace(register_model=registered.__setitem__))
    )
    register()
    register()  # vLLM calls it in each of its processes, and may twice
    (name,) = AutoConfig.from_pretrained(tmp_path).architectures
    assert registered[name] == f"{BACKEND}:{served}"


def test_stock_classes_stay_those_of_vllm() -> None:
    assert all(name.startswith("Mabprune") for name in served_classes())
