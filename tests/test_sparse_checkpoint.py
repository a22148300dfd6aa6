"""`mabprune sparsify`: what it writes, says and refuses."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from hf_mabprune import sparsify_checkpoint
from hf_mabprune.artifacts.publish import _prepare
from hf_mabprune.artifacts.sparsity_report import HONEST
from hf_mabprune.checkpoints.load import load_pruned
from hf_mabprune.cli.commands import main
from tests.problems import settings_for

pytestmark = pytest.mark.whole


def config_for(folder: Path, files: dict[str, str], model_type: str = "bert") -> Path:
    """Writes a tiny model to folder / "model", and the config of a run on it, which is given."""
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(settings_for(folder, files, model_type).stored()))
    return path


def zeros_in(folder: Path) -> dict[str, torch.Tensor]:
    """Where the weights of a checkpoint are zero, by name."""
    return {name: tensor == 0 for name, tensor in load_file(folder / "model.safetensors").items()}


def test_without_data_the_checkpoint_is_ordinary_and_the_card_honest(
    tmp_path: Path, files: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    config_for(tmp_path, files)
    assert main(["sparsify", str(tmp_path / "model"), "--rate", "0.9"]) == 0
    said, out = capsys.readouterr().out, tmp_path / "model-sparse"
    report = json.loads((out / "mabprune/sparsity.json").read_text())
    model = AutoModelForSequenceClassification.from_pretrained(out)
    zeros = sum(int((model.get_submodule(name).weight == 0).sum()) for name in report["modules"])
    assert zeros == report["zeros"] == round(0.9 * report["weights"])
    assert report["left_out"] == {"classifier": "the last layer"} and report["before"] is None
    before, after = report["before_files"], report["after_files"]
    assert after["stored"] == before["stored"] == (tmp_path / "model/model.safetensors").stat().st_size
    assert after["compressed"] < 0.8 * before["compressed"]
    card = (out / "README.md").read_text()
    assert HONEST in said and HONEST in card and "Quality was not measured" in card
    assert str(tmp_path) not in card + (out / "mabprune/sparsity.json").read_text()
    assert not (out / "dense").exists() and (out / "tokenizer.json").is_file()
    assert "README.md" in _prepare(out, "me/sparse", tmp_path / "push").paths  # may be published

    assert main(["sparsify", str(tmp_path / "model"), "--rate", "0.5"]) == 2
    assert "choose another output.dir" in capsys.readouterr().err.lower()
    assert main(["sparsify", str(tmp_path / "model"), "--rate", "0.5", "--output.overwrite"]) == 0
    assert json.loads((out / "mabprune/sparsity.json").read_text())["rate"] == 0.5


def test_with_data_both_are_measured_and_training_keeps_the_zeros(
    tmp_path: Path, files: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_for(tmp_path, files)
    options = ["--config", str(config), "--kind", "connection", "--criterion", "first_order", "--seed", "3"]
    places = {}
    for name, further in (
        ("plain", []),
        ("trained", ["--recovery.max_steps", "2", "--recovery.learning_rate", "0.01"]),
    ):
        places[name] = tmp_path / name
        place = ["--output.dir", str(places[name])]
        assert main(["sparsify", str(tmp_path / "model"), "--rate", "0.5", *options, *place, *further]) == 0
    assert "accuracy" in capsys.readouterr().out
    plain, trained = (json.loads((places[name] / "mabprune/sparsity.json").read_text()) for name in places)
    assert plain["before"] == plain["before"] | {"kl": None, "metrics": trained["before"]["metrics"]}
    assert plain["after"]["kl"] > 0 and plain["after"]["kl"] != trained["after"]["kl"]
    assert plain["recovery"] is None and trained["recovery"]["steps"] == 2
    assert plain["after"]["macs"] == plain["before"]["macs"] and plain["seed"] == 3
    stored = [load_file(place / "model.safetensors") for place in places.values()]
    for name in plain["modules"]:
        before, after = (weights[f"{name}.weight"] for weights in stored)
        assert torch.equal(before == 0, after == 0) and not torch.equal(before, after)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_decoders_keep_precision_and_ties(dtype: torch.dtype, tmp_path: Path, files: dict[str, str]) -> None:
    config_for(tmp_path, files, "gpt2")
    dense = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=dtype)
    dense.save_pretrained(tmp_path / "model")
    report = sparsify_checkpoint(tmp_path / "model", tmp_path / "out", 0.5, scope="module")
    sparse = load_pruned(tmp_path / "out")
    assert sparse.dtype == dtype and sparse.lm_head.weight is sparse.transformer.wte.weight
    assert report.zeros == sum(int((sparse.get_submodule(name).weight == 0).sum()) for name in report.modules)
    for name, parameter in dense.named_parameters():
        stays = sparse.get_parameter(name) != 0
        assert torch.equal(parameter[stays], sparse.get_parameter(name)[stays])


def test_an_embedder_is_compared_with_its_dense_model(tmp_path: Path, files: dict[str, str]) -> None:
    config = config_for(tmp_path, files)
    words = ["--config", str(config), "--task.type", "sentence_embedding", "--output.dir", str(tmp_path / "out")]
    assert main(["sparsify", str(tmp_path / "model"), "--rate", "0.3", *words]) == 0
    report = json.loads((tmp_path / "out/mabprune/sparsity.json").read_text())
    assert report["before"]["metrics"]["cosine"] == pytest.approx(1)
    after = report["after"]
    assert after["kl"] > 0 and after["metrics"]["cosine"] == pytest.approx(1 - after["kl"])
    assert (tmp_path / "out/modules.json").is_file()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("--rate 1", "rate must be in [0, 1), got 1.0"),
        ("--rate half", "invalid float value: 'half'"),
        ("--kind unstructured", "required: --rate"),
        ("--rate 0.5 --kind filters", "kind must be one of unstructured, connection, structured, got 'filters'"),
        ("--rate 0.5 --criterion first_order", "needs calibration data: give batches, or a config that names data"),
        ("--rate 0.5 --exclude nobody", "exclude names modules of the model, got 'nobody'"),
        ("--rate 0.5 --config nope.yaml", "no config file 'nope.yaml'"),
        ("--rate 0.5 --config run.yaml --recovery.method lora", "set recovery.method full and stages 1"),
        ("--rate 0.5 --config run.yaml --task.batchsize 8", "mean 'task.batch_size'?"),
        ("--rate 0.5 --rates 0.5", "unknown key 'rates'"),
        ("--rate 0.5 --output.dir model", "model"),
    ],
)
def test_what_cannot_be_is_one_line(
    options: str,
    says: str,
    tmp_path: Path,
    files: dict[str, str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config_for(tmp_path, files)
    monkeypatch.chdir(tmp_path)
    before = zeros_in(tmp_path / "model").keys(), sorted(tmp_path.iterdir())
    assert main(["sparsify", "model", *options.split()]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("mabprune:")]
    assert says in line
    assert before == (zeros_in(tmp_path / "model").keys(), sorted(tmp_path.iterdir()))
