"""Models and data that say next to nothing: a run ends with numbers, or one line says why it cannot."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import PreTrainedModel

from hf_mabprune import prune
from tests.problems import sentences
from tests.tasks.tiny_tasks import make_tokenizer, t5
from tests.tiny_models import tiny_model

pytestmark = [pytest.mark.whole, pytest.mark.usefixtures("without_figures")]

DEAD_FFN = r"intermediate\.dense\.weight"
Change = Callable[[torch.Tensor], Any]


def changed(pattern: str, change: Change, model_type: str = "bert") -> PreTrainedModel:
    """A tiny model with all weights changed whose names have a pattern."""
    heads = {"bert": "AutoModelForSequenceClassification", "t5": "AutoModelForSeq2SeqLM"}
    model = t5() if model_type == "t5" else tiny_model(model_type, heads.get(model_type, "AutoModelForCausalLM"))
    weights = [weight for name, weight in model.named_parameters() if re.search(pattern, name)]
    assert weights
    with torch.no_grad():
        for weight in weights:
            change(weight)
    return model


def rows(model: PreTrainedModel, texts: list[str], labels: list[int]) -> Dataset:
    """As the task of the model wants them."""
    if model.config.model_type == "t5":
        return Dataset.from_dict({"source": texts, "target": texts})
    return Dataset.from_dict({"text": texts, "label": labels})


def run(model: PreTrainedModel, folder: Path, texts: list[str] | None = None, **settings: Any) -> dict[str, Any]:
    """Prunes half of the neurons; gives the report as it is on disk."""
    made = [sentences(32, seed) for seed in range(3)]
    splits = [rows(model, texts or each["sentence"], each["label"]) for each in made]
    kind = {"bert": "pair", "t5": "end"}.get(model.config.model_type, "plain")
    usual = {
        "target": {"neurons": 0.5} if model.config.model_type == "mixtral" else {"neurons": 0.5, "heads": 0.5},
        "task": {"batch_size": 8} | ({"max_length": 5} if kind == "plain" else {}),
        "prune": {"block_size": 8, "layout": "per_layer"},
        "output": {"random_seeds": 1},
    }
    prune(model, make_tokenizer(kind), *splits, output_dir=folder, **(usual | settings))
    return json.loads((folder / "mabprune" / "report.json").read_text(), parse_constant=refuse)


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


MODELS: dict[str, tuple[str, Change]] = {
    "dead neurons with biases": (DEAD_FFN, torch.Tensor.zero_),
    "neurons below a ReLU's threshold": (r"intermediate\.dense", lambda weight: weight.fill_(-9)),
    "zero value projection": (r"value\.weight", torch.Tensor.zero_),
    "zero output projection": (r"attention\.output\.dense", torch.Tensor.zero_),
    "constant normalisation": (r"LayerNorm\.weight", torch.Tensor.zero_),
    "equal rows": (r"intermediate\.dense\.weight|value\.weight", lambda weight: weight.copy_(weight[:1].clone())),
    "huge": (r"intermediate\.dense\.weight|value\.weight", lambda weight: weight.mul_(1e18)),
    "denormal": (r"encoder\.layer", lambda weight: weight.mul_(1e-40)),
    "no weights at all": (r"", torch.Tensor.zero_),
}


@pytest.mark.parametrize("name", MODELS)
def test_degenerate_models_are_pruned(name: str, tmp_path: Path) -> None:
    report = run(changed(*MODELS[name]), tmp_path / "out")
    assert 0 <= report["after"]["kl"] < 100
    assert report["reload"]["max_logit_difference"] < 1e-3


@pytest.mark.parametrize("search", [{"criterion": "kfac_obs"}, {"criterion": "obs"}, {"rule": "interactions"}])
@pytest.mark.parametrize("name", ["dead neurons with biases", "zero value projection"])
def test_other_ways_to_prune_take_degenerate_models(search: dict[str, Any], name: str, tmp_path: Path) -> None:
    assert run(changed(*MODELS[name]), tmp_path / "out", search=search)["after"]["kl"] < 100


@pytest.mark.parametrize(
    ("model_type", "pattern"),
    [
        ("t5", r"\.v\.weight|\.wi\.weight"),
        ("gpt2", r"c_fc\.weight"),
        ("llama", r"v_proj|norm"),
        ("mixtral", r"v_proj"),
    ],
)
def test_other_families_take_dead_layers(model_type: str, pattern: str, tmp_path: Path) -> None:
    model = changed(pattern, torch.Tensor.zero_, model_type)
    assert run(model, tmp_path / "out")["after"]["kl"] < 100


def test_an_expert_that_no_token_goes_to_may_be_pruned(tmp_path: Path) -> None:
    def lopsided(weight: torch.Tensor) -> None:
        weight.zero_()
        weight[:2] = torch.randn_like(weight[:2])

    report = run(changed(r"gate\.weight", lopsided, "mixtral"), tmp_path / "out")
    assert np.isfinite(report["after"]["loss"])


@pytest.mark.parametrize("text", ["a b c", "a", ""])
def test_texts_that_are_all_equal(text: str, tmp_path: Path) -> None:
    model = tiny_model("bert", "AutoModelForSequenceClassification")
    assert run(model, tmp_path / "out", [text] * 32)["after"]["kl"] < 100


@pytest.mark.parametrize("task", [{"max_length": 2}, {"batch_size": 1, "calibration_examples": 2}])
def test_next_to_no_data(task: dict[str, Any], tmp_path: Path) -> None:
    model = tiny_model("bert", "AutoModelForSequenceClassification")
    assert run(model, tmp_path / "out", task={"batch_size": 8} | task)["after"]["kl"] < 100


def test_a_model_that_overflows_is_refused_with_the_module_where_it_begins(tmp_path: Path) -> None:
    model = changed(r"intermediate\.dense\.weight|value\.weight", lambda weight: weight.mul_(1e30))
    with pytest.raises(ValueError, match=r"encoder\.layer\.0\.[\w.]+ overflows float32; look for weights") as refused:
        run(model, tmp_path / "out")
    assert "use dtype float32" not in str(refused.value)
    with pytest.raises(ValueError, match=r"overflows float16; use dtype float32"):
        run(changed(r"dense\.weight|value\.weight", lambda weight: weight.mul_(1e4)).half(), tmp_path / "out")


def test_a_head_of_zeros_is_warned_of(tmp_path: Path) -> None:
    report = run(changed("classifier", torch.Tensor.zero_), tmp_path / "out")
    assert any("nothing that the model says depends on the arms" in warning for warning in report["warnings"])
