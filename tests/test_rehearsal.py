"""What would be found out at the end of a run is found out before the search, and nothing is left behind."""

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from datasets import Dataset
from transformers import PreTrainedModel

from hf_mabprune import pipeline, prune, rehearsal
from hf_mabprune.checkpoints import load
from hf_mabprune.pipeline import prune_from_config
from hf_mabprune.rehearsal import check_precision, first_layers, rehearse_checkpoint
from hf_mabprune.runtime.accelerator import make_accelerator
from hf_mabprune.session import Session, open_session
from tests.problems import sentences, settings_for
from tests.tasks.tiny_tasks import make_tokenizer
from tests.tiny_models import every_type_and_head, outputs_of, tiny_model
from tests.tiny_sizes import UNLIKE

pytestmark = [pytest.mark.whole, pytest.mark.usefixtures("without_figures")]
CLASSIFIER = "AutoModelForSequenceClassification"
THREE = {"gpt2": {"n_layer": 3}, "t5": {"num_layers": 3, "num_decoder_layers": 3}}


@pytest.fixture
def no_search(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "search", lambda *_: pytest.fail("the search began"))


def session_of(folder: Path, files: dict[str, str], model_type: str = "bert", **changes: Any) -> Session:
    return open_session(settings_for(folder, files, model_type, **changes), make_accelerator())


@pytest.mark.parametrize("layout", ["per_layer", "uniform", "auto"])
@pytest.mark.parametrize("whole", [True, False])
def test_a_model_that_works_passes_and_leaves_nothing_behind(
    layout: str, whole: bool, tmp_path: Path, files: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not whole:
        monkeypatch.setattr(rehearsal, "SMALL", 0)
    prune = {"layout": layout, "target": {"neurons": 0.5}, "arms": ["neuron"]}
    session = session_of(tmp_path, files, "llama", prune=prune)
    before, state = outputs_of(session.dense), torch.get_rng_state()
    paths = sorted(tmp_path.rglob("*"))
    tried: list[str] = []
    cut = rehearsal.cut
    monkeypatch.setattr(rehearsal, "cut", lambda *given: tried.append(given[2]) or cut(*given))
    rehearse_checkpoint(session)
    assert tried == (["per_layer", "uniform"] if layout == "auto" else [layout])
    assert sorted(tmp_path.rglob("*")) == paths
    assert torch.equal(outputs_of(session.dense), before) and torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("model_type", "head"), [each for each in every_type_and_head() if each[0] in UNLIKE][::3])
def test_the_first_layers_have_the_weights_of_the_model(
    model_type: str, head: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rehearsal, "SMALL", 0)
    model = tiny_model(model_type, head, **THREE.get(model_type, {"num_hidden_layers": 3}))
    short = first_layers(model)
    assert short is not model and short.num_parameters() < model.num_parameters()
    for name, parameter in short.named_parameters():
        assert torch.equal(parameter, model.get_parameter(name)), name
    assert outputs_of(short, head).isfinite().all()
    short.config.save_pretrained(tmp_path)  # which refuses a config that lists more layers than it counts


def test_weights_beyond_the_precision_of_the_file_are_refused(
    tmp_path: Path, files: dict[str, str], no_search: None
) -> None:
    settings = settings_for(tmp_path, files, "bert")
    model = tiny_model("bert", CLASSIFIER)
    with torch.no_grad():
        model.classifier.weight[0, 0] = 7e4
    model.save_pretrained(tmp_path / "model")
    half = settings.model_copy(update={"model": settings.model.model_copy(update={"save_dtype": "float16"})})
    with pytest.raises(ValueError, match=r"weight holds 7e\+04, and float16, .* set model.save_dtype: float32"):
        prune_from_config(half)
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.state").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value: float) -> None:
    model = tiny_model("bert", CLASSIFIER)
    with torch.no_grad():
        model.classifier.bias[1] = value
    with pytest.raises(ValueError, match=r"not finite: classifier\.bias holds"):
        check_precision(model, torch.float32)


@pytest.mark.parametrize("difference", [0.5, float("nan")])
def test_what_does_not_come_back_as_it_was_is_refused_before_the_search(
    difference: float, tmp_path: Path, files: dict[str, str], monkeypatch: pytest.MonkeyPatch, no_search: None
) -> None:
    monkeypatch.setattr(rehearsal, "reload_difference", lambda *_: difference)
    with pytest.raises(ValueError, match=r"cut \(per_layer\), saved and read back differs from itself by"):
        prune_from_config(settings_for(tmp_path, files, "bert"))


def test_a_model_without_finite_outputs_is_refused_with_the_cause(
    tmp_path: Path, files: dict[str, str], no_search: None
) -> None:
    settings = settings_for(tmp_path, files, "bert")
    model = tiny_model("bert", CLASSIFIER)
    with torch.no_grad():
        model.classifier.weight.fill_(3e38)
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(
        ValueError, match=r"no calibration batch has finite outputs: the output of classifier overflows"
    ):
        prune_from_config(settings)


def test_whatever_saving_raises_is_one_line_before_the_search(
    tmp_path: Path, files: dict[str, str], monkeypatch: pytest.MonkeyPatch, no_search: None
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise KeyError("a\nb")

    settings = settings_for(tmp_path, files, "bert")
    monkeypatch.setattr(PreTrainedModel, "save_pretrained", broken)
    with pytest.raises(ValueError, match=r"cannot be cut .*, saved and read back: there is no") as refused:
        prune_from_config(settings)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists() and not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_difference_with_nan_is_nan(tmp_path: Path) -> None:
    model = tiny_model("bert", CLASSIFIER)
    model.save_pretrained(tmp_path)
    inputs = {"input_ids": torch.tensor([[3, 4, 5]])}
    assert load.reload_difference(model, tmp_path, CLASSIFIER, inputs) < 1e-6
    with torch.no_grad():
        model.classifier.bias[0] = float("nan")
    assert not load.reload_difference(model, tmp_path, CLASSIFIER, inputs) <= 1e9


def test_a_model_from_mixed_precision_training_is_pruned_in_its_own(tmp_path: Path) -> None:
    splits = {
        name: Dataset.from_dict(sentences(48, seed)) for seed, name in enumerate(("calibration", "validation", "test"))
    }
    given = {"target": {"neurons": 0.5}, "prune": {"block_size": 8}, "search": {"rounds": 1, "pulls_per_arm": 1}}
    given |= {"task": {"batch_size": 8}, "output": {"random_seeds": 1}, "compensation": None}
    tokenizer = make_tokenizer("pair")
    plain = prune(tiny_model("bert", CLASSIFIER), tokenizer, **splits, output_dir=tmp_path / "plain", **given)
    AcceleratorState._reset_state(reset_partial_state=True)
    model = Accelerator(cpu=True, mixed_precision="bf16").prepare(tiny_model("bert", CLASSIFIER))
    AcceleratorState._reset_state(reset_partial_state=True)
    forward, training = model.forward, model.training
    found = prune(model, tokenizer, **splits, output_dir=tmp_path / "prepared", **given)
    assert (found.selection.kept == plain.selection.kept).all()
    assert found.report.after.loss == plain.report.after.loss
    assert model.forward is forward and model.training == training
