"""`mabprune carry-adapter` on a small run: what it writes loads with peft, and what does not fit is refused."""

from pathlib import Path

import pytest
import torch

from hf_mabprune.checkpoints.load import load_pruned
from hf_mabprune.cli.commands import main
from hf_mabprune.pipeline import prune_from_config
from tests.problems import settings_for, write_splits

peft = pytest.importorskip("peft", reason="pip install 'hf_mabprune[peft]'")
pytestmark = [pytest.mark.whole, pytest.mark.usefixtures("without_figures")]
REFIT = {"name": "least_squares", "guard": False}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A refitted run of a bert with per-layer sizes, and beside it LoRAs of its dense model."""
    folder = tmp_path_factory.mktemp("run")
    prune_from_config(settings_for(folder, write_splits(folder), "bert", compensation=REFIT))
    lora(folder, "lora")
    lora(folder, "dora", use_dora=True)
    lora(folder, "biased", bias="all")
    return folder


def lora(folder: Path, name: str, **options: object) -> None:
    """A LoRA that changes what the dense model says."""
    config = peft.LoraConfig(r=2, target_modules=["query", "value", "dense"], **options)
    model = peft.get_peft_model(load_pruned(folder / "model", dtype=torch.float32), config)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "lora_B" in key:
                parameter.normal_(std=0.1)
    model.save_pretrained(str(folder / name))


def test_a_lora_is_carried_over_and_measured(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "carried"
    assert main(["carry-adapter", str(run / "out"), str(run / "lora"), "--output.dir", str(place)]) == 0
    said = capsys.readouterr().out
    assert f"carried over: {place}, " in said and "KL from the dense model, both with the LoRA: " in said
    assert "without the refit of the LoRA: " in said and " 0 refitted" not in said
    small = load_pruned(run / "out", dtype=torch.float32).eval()
    loaded = peft.PeftModel.from_pretrained(load_pruned(run / "out", dtype=torch.float32), str(place)).eval()
    ids = torch.arange(3, 12).view(1, -1)
    with torch.no_grad():
        assert not torch.allclose(loaded(input_ids=ids)[0], small(input_ids=ids)[0], atol=1e-4)
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {path.name for path in place.iterdir()}


def test_without_data_it_is_sliced_alone(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "carry-adapter",
        str(run / "out"),
        str(run / "lora"),
        "--slice",
        "--output.dir",
        str(tmp_path / "carried"),
    ]
    assert main(words) == 0
    assert " 0 refitted" in (said := capsys.readouterr().out) and "KL" not in said


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("dora", [], "has use_dora; only a plain LoRA"),
        ("biased", [], "trained biases (bias: all)"),
        ("lora", ["--dense", "out"], "does not have the weights that the run pruned"),
        ("lora", ["--prune.target.neurons", "2"], "prune.target"),
    ],
)
def test_what_does_not_fit_is_refused(
    name: str, options: list[str], says: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [str(run / word) if word == "out" else word for word in options]
    words = ["carry-adapter", str(run / "out"), str(run / name), "--output.dir", str(tmp_path / "no"), *options]
    assert main(words) == 2
    assert says in capsys.readouterr().err and not (tmp_path / "no").exists()


def test_a_lora_of_another_model_is_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = peft.LoraConfig(r=2, target_modules=["query"], base_model_name_or_path="somebody/else")
    config.save_pretrained(str(tmp_path / "other"))
    words = ["carry-adapter", str(run / "out"), str(tmp_path / "other"), "--output.dir", str(tmp_path / "no")]
    assert main(words) == 2
    assert "is of somebody/else, the run pruned" in (said := capsys.readouterr().err) and "--dense" in said
