"""`mabprune verify` on small runs, and on copies of them that somebody has changed."""

import json
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open

from hf_mabprune.artifacts import checksums
from hf_mabprune.artifacts.remade import ON_REFITS, relative_distance
from hf_mabprune.artifacts.run_folder import RunFolder
from hf_mabprune.cli import main
from hf_mabprune.pipeline import prune_from_config
from tests.problems import settings_for

pytestmark = [pytest.mark.whole, pytest.mark.usefixtures("without_figures")]
SLICED, REFITTED = "classifier.weight", "bert.encoder.layer.0.output.dense.weight"


@dataclass(frozen=True)
class Outcome:
    """What the command said: its exit code, and by the name of a check, outcome and detail."""

    code: int
    checks: dict[str, tuple[str, str]]

    @property
    def failed(self) -> set[str]:
        return {name for name, (outcome, _) in self.checks.items() if outcome == "FAILED"}


Verify = Callable[..., Outcome]


@pytest.fixture
def verify(capsys: pytest.CaptureFixture[str]) -> Verify:
    def call(folder: Path, *options: str) -> Outcome:
        capsys.readouterr()
        code = main(["verify", str(folder), "--json", *options])
        said = json.loads(capsys.readouterr().out)
        return Outcome(code, {each["name"]: (each["outcome"], each["detail"]) for each in said})

    return call


@pytest.fixture(scope="module")
def run(place: Path, data: dict[str, str]) -> Path:
    """A refitted run of a bert with per-layer sizes; nobody changes it."""
    refit = {"name": "least_squares", "guard": False}
    prune_from_config(settings_for(place, data, "bert", compensation=refit, task={"evaluation_examples": 16}))
    return place / "out"


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "copy"))


def base_of(run: Path) -> tuple[str, str]:
    return "--base", str(run.parent / "model")


def write_sums(folder: Path) -> None:
    """What whoever can write to all files of a folder does at the end."""
    checksums.write(folder, RunFolder(folder).checksums)


def flip(folder: Path, name: str, number: int, bit: int) -> None:
    """Flips one bit of one number of a stored float32 tensor, in place."""
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    length = struct.unpack("<Q", content[:8])[0]
    start = 8 + length + json.loads(content[8 : 8 + length])[name]["data_offsets"][0]
    content[start + 4 * number + bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def stored(folder: Path, name: str) -> torch.Tensor:
    with safe_open(folder / "model.safetensors", "pt") as file:
        tensor: torch.Tensor = file.get_tensor(name)
    return tensor


def change_json(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_a_run_is_what_it_says(run: Path, verify: Verify) -> None:
    found = verify(run)
    assert found.code == 0 and {outcome for outcome, _ in found.checks.values()} == {"ok"}
    found = verify(run, *base_of(run))
    assert found.code == 0 and {outcome for outcome, _ in found.checks.values()} == {"ok"}
    assert {"base weights", "sliced tensors", "refitted tensors", "logits"} <= set(found.checks)
    names = set(json.loads(RunFolder(run).report.read_text())["compensation"]["changed"])
    assert REFITTED in names and SLICED not in names
    with safe_open(run / "model.safetensors", "pt") as file:
        assert names < set(file.keys())


@pytest.mark.parametrize("bit", [0, 12, 31])
def test_every_flipped_bit_of_a_sliced_tensor_is_found(copy: Path, run: Path, verify: Verify, bit: int) -> None:
    flip(copy, SLICED, 3, bit)
    assert verify(copy).failed == {"checksums"}
    write_sums(copy)
    assert verify(copy).failed == set(), "whoever rewrites the checksums too is not found without the base"
    found = verify(copy, *base_of(run))
    assert found.code == 1 and found.failed == {"sliced tensors"}
    assert found.checks["sliced tensors"][1].startswith(f"{SLICED} is no slice of the base's")


@pytest.mark.parametrize("bit", [23, 27, 31])
def test_a_flipped_bit_of_a_refitted_tensor_is_found_beyond_the_tolerance(
    copy: Path, run: Path, verify: Verify, bit: int
) -> None:
    largest = int(stored(copy, REFITTED).abs().argmax())
    flip(copy, REFITTED, largest, bit)
    write_sums(copy)
    found = verify(copy, *base_of(run))
    assert found.code == 1 and found.failed == {"refitted tensors"}
    assert found.checks["refitted tensors"][1].startswith(f"{REFITTED} differs by")


def test_the_last_bit_of_a_refitted_tensor_is_taken_for_rounding(copy: Path, run: Path, verify: Verify) -> None:
    flip(copy, REFITTED, 0, 0)
    assert verify(copy, *base_of(run)).failed == {"checksums"}
    write_sums(copy)
    assert verify(copy, *base_of(run)).failed == set()


def test_distances_are_over_the_root_mean_square() -> None:
    again = torch.tensor([[3.0, -3.0], [3.0, -3.0]])
    assert relative_distance(again, again) == 0
    assert relative_distance(again + torch.tensor([[0.0, 0.3], [0.0, 0.0]]), again) == pytest.approx(0.1)
    half = again.bfloat16()
    assert relative_distance(torch.nextafter(half, half + 1), half) == 0, "the last bit of half precision is rounding"
    assert not relative_distance(torch.full((2, 2), torch.nan), again) <= ON_REFITS


def grow_an_epsilon(folder: Path) -> None:
    change_json(folder / "config.json", layer_norm_eps=1e6)


def change_a_token(folder: Path) -> None:
    path = folder / "tokenizer.json"
    text = json.loads(path.read_text())
    vocabulary = text["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    path.write_text(json.dumps(text))


def add_an_adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")


def claim_a_refit(folder: Path) -> None:
    path = RunFolder(folder).report
    report = json.loads(path.read_text())
    report["compensation"]["changed"].append(SLICED)
    path.write_text(json.dumps(report))


def keep_other_units(folder: Path) -> None:
    path = RunFolder(folder).arms
    arms = pd.read_parquet(path)
    rows = np.flatnonzero(arms["site"] == arms["site"][0])
    gone = next(row for row in rows if not arms["kept"][row])
    arms.loc[[gone, next(row for row in rows if arms["kept"][row])], "kept"] = [True, False]
    arms.to_parquet(path)


@pytest.mark.parametrize(
    "act, failed",
    [
        (grow_an_epsilon, {"config fields"}),
        (change_a_token, {"other files"}),
        (add_an_adapter, {"other files"}),
        (claim_a_refit, {"cut again"}),
        (keep_other_units, {"refitted tensors"}),
    ],
)
def test_what_is_not_the_bases_is_found(
    copy: Path, run: Path, verify: Verify, act: Callable[[Path], None], failed: set[str]
) -> None:
    act(copy)
    write_sums(copy)
    found = verify(copy, *base_of(run))
    assert found.code == 1 and failed <= found.failed
    assert found.failed == failed or act is add_an_adapter  # which transformers loads along where peft is installed


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])


def make_infinite(folder: Path) -> None:
    flip(folder, SLICED, 0, 30)
    for bit in range(23, 30):
        if not torch.isinf(stored(folder, SLICED).flatten()[0]) and not stored(folder, SLICED).isnan().any():
            exponent = struct.unpack("<I", struct.pack("<f", float(stored(folder, SLICED).flatten()[0])))[0]
            if not exponent >> bit & 1:
                flip(folder, SLICED, 0, bit)


def grow_the_model(folder: Path) -> None:
    change_json(folder / "config.json", num_hidden_layers=3)


def ask_for_everything(folder: Path) -> None:
    change_json(folder / "config.json", num_hidden_layers=900_000)


def replace_code(folder: Path) -> None:
    (folder / "modeling_pruned.py").write_text("raise SystemExit(3)")


def say_another_seed(folder: Path) -> None:
    change_json(RunFolder(folder).report, seed=5)


def say_fewer_parameters(folder: Path) -> None:
    path = RunFolder(folder).report
    report = json.loads(path.read_text())
    report["after"]["parameters"] -= 1
    path.write_text(json.dumps(report))


def say_no_number(folder: Path) -> None:
    path = RunFolder(folder).report
    report = json.loads(path.read_text())
    report["search"]["seconds"] = float("nan")
    path.write_text(json.dumps(report))


def break_the_report(folder: Path) -> None:
    RunFolder(folder).report.write_text("[")


def drop_the_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()


@pytest.mark.parametrize(
    "act, failed",
    [
        (truncate, {"weights", "shapes", "report and weights"}),
        (make_infinite, {"weights"}),
        (grow_the_model, {"shapes", "report and weights"}),
        (ask_for_everything, {"shapes", "report and weights"}),
        (replace_code, {"code"}),
        (say_another_seed, {"report and config"}),
        (say_fewer_parameters, {"report and weights"}),
        (keep_other_units, set()),
        (break_the_report, {"details"}),
        (drop_the_tokenizer, {"processor"}),
    ],
)
def test_what_contradicts_itself_is_found_without_the_base(
    copy: Path, verify: Verify, act: Callable[[Path], None], failed: set[str]
) -> None:
    act(copy)
    write_sums(copy)
    found = verify(copy)
    assert found.failed == failed and found.code == int(bool(failed))


def test_data_that_are_gone_are_not_taken_for_a_fault(copy: Path, run: Path, verify: Verify) -> None:
    config = RunFolder(copy).config
    config.write_text(config.read_text().replace("train.parquet", "gone.parquet"))
    write_sums(copy)
    found = verify(copy, *base_of(run))
    assert found.code == 0 and found.checks["sliced tensors"][0] == "ok"
    assert {name for name, (outcome, _) in found.checks.items() if outcome == "not checked"} == {
        "calibration data", "refitted tensors", "logits",
    }  # fmt: skip
    named = "--task.dataset.data_files.train", str(run.parent / "train.parquet")
    found = verify(copy, *base_of(run), *named)
    assert found.code == 0 and found.checks["refitted tensors"][0] == "ok", "the data can be named"
    found = verify(
        copy, *base_of(run), "--task.dataset.data_files.train", str(run.parent / "train.parquet"), "--seed", "1"
    )
    assert found.code == 0 and "another SHA-256" in found.checks["calibration data"][1]


def test_a_model_type_that_is_not_known_leaves_the_rest_to_be_checked(copy: Path, verify: Verify) -> None:
    change_json(copy / "config.json", model_type="mabprune_acme")
    change_json(RunFolder(copy).report, architecture="acme")
    write_sums(copy)
    found = verify(copy)
    details = {name: detail for name, (outcome, detail) in found.checks.items() if outcome == "not checked"}
    assert found.code == 0 and set(details) == {"shapes", "report and weights"}
    assert all("'acme'" in detail and "--plugin FILE" in detail for detail in details.values())


def test_another_base_is_found(copy: Path, run: Path, verify: Verify, tmp_path: Path) -> None:
    other = Path(shutil.copytree(run.parent / "model", tmp_path / "other"))
    flip(other, SLICED, 0, 5)
    found = verify(copy, "--base", str(other))
    assert found.failed == {"base weights", "sliced tensors"}


def test_what_is_no_run_has_exit_code_2(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(run.parent / "model")]) == 2
    assert "holds no folder mabprune, so no run wrote it" in capsys.readouterr().err
    assert main(["verify", str(run), "--base", str(tmp_path / "nowhere")]) == 2
    assert main(["verify", str(run), "--seed", "3"]) == 2
    assert "--base alone" in capsys.readouterr().err


@pytest.mark.parametrize(
    "model_type, changes",
    [
        ("llama", {}),
        ("llama", {"prune": {"arms": ["neuron"], "target": {"neurons": 0.5}, "layout": "uniform"}}),
        ("bert", {"compensation": None, "model": {"save_dtype": "bfloat16"}}),
        ("llama", {"prune": {"target": {"layer_parameters": 0.3}, "min_heads": 0}}),
        ("bert", {"compensation": "mask_tuning", "model": {"save_dtype": "bfloat16"}}),
    ],
)
def test_other_runs_are_made_again(
    tmp_path: Path, files: dict[str, str], verify: Verify, model_type: str, changes: dict[str, Any]
) -> None:
    prune_from_config(settings_for(tmp_path, files, model_type, **changes))
    found = verify(tmp_path / "out", *base_of(tmp_path / "out"))
    assert found.code == 0 and {outcome for outcome, _ in found.checks.values()} == {"ok"}, found.checks


def test_of_a_trained_run_only_what_is_provable_is_said(tmp_path: Path, files: dict[str, str], verify: Verify) -> None:
    prune_from_config(settings_for(tmp_path, files, "bert", recovery={"max_steps": 1}))
    found = verify(tmp_path / "out", *base_of(tmp_path / "out"))
    assert found.code == 0
    assert {name for name, (outcome, _) in found.checks.items() if outcome == "not checked"} == {
        "calibration data", "sliced tensors", "refitted tensors", "logits",
    }  # fmt: skip


def test_every_size_is_verified(tmp_path: Path, files: dict[str, str], verify: Verify) -> None:
    target = {"target": {"neurons": [0.25, 0.5]}}
    settings = settings_for(tmp_path, files, "bert", prune={**target, "arms": ["neuron"]})
    prune_from_config(settings)
    found = verify(tmp_path / "out")
    assert found.code == 0 and {"checksums", "neurons-0.25: weights", "neurons-0.5: weights"} <= set(found.checks)
    truncate(tmp_path / "out" / "neurons-0.5")
    assert {"checksums", "neurons-0.5: weights"} < verify(tmp_path / "out").failed


def test_a_run_that_has_changed_is_not_cut_from(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = RunFolder(copy)
    for path in (folder.arms, folder.report, folder.config, folder.search_state):
        content = path.read_bytes()
        path.write_bytes(content + b"\n")
        assert main(["cut", str(copy), "--target.neurons", "0.25", "--output.dir", str(copy.parent / "new")]) == 2
        line = capsys.readouterr().err
        assert line.count("\n") == 1 and f"{path} has changed" in line and "make the run again" in line
        path.write_bytes(content)
    folder.checksums.unlink()
    assert main(["cut", str(copy), "--target.neurons", "0.25", "--output.dir", str(copy.parent / "new")]) == 2
    assert "so it cannot be checked: make the run again" in capsys.readouterr().err
    assert not (copy.parent / "new").exists()
