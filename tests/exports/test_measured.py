"""`mabprune export --measure`: quality, bytes and times of both models in torch and in every format on the way."""

import json
from pathlib import Path

import pytest

from hf_mabprune.cli.commands import main
from hf_mabprune.evaluation.served import SIZES
from hf_mabprune.export import FIGURES
from hf_mabprune.pipeline import prune_from_config
from tests.problems import settings_for, write_splits

pytestmark = [pytest.mark.whole, pytest.mark.usefixtures("without_figures")]
FORMATS = [f"{model}, {place}" for place in ("torch", "onnx", "onnx_int8") for model in ("dense", "pruned")]


def test_both_models_are_measured_in_every_format(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime", reason="pip install 'hf_mabprune[onnx]'")
    pytest.importorskip("onnxscript", reason="pip install 'hf_mabprune[onnx]'")
    monkeypatch.setattr("hf_mabprune.evaluation.served.TURNS", 2)
    prune_from_config(settings_for(tmp_path, write_splits(tmp_path), "bert"))
    place = tmp_path / "int8"
    words = ["export", str(tmp_path / "out"), "--to", "onnx_int8", "--output.dir", str(place), "--measure"]
    assert main(words) == 0
    assert "of their size of the model's" in (said := capsys.readouterr().out)
    told = json.loads((place / FIGURES).read_text())
    rows = told["figures"]
    assert list(rows) == FORMATS and all(name in said for name in FORMATS)
    assert rows["dense, torch"]["kl"] == 0 and rows["dense, onnx"]["kl"] < 1e-6
    assert rows["pruned, onnx"]["kl"] == pytest.approx(rows["pruned, torch"]["kl"], abs=1e-6)
    assert rows["pruned, onnx"]["metric"] == rows["pruned, torch"]["metric"]
    assert rows["pruned, onnx_int8"]["kl"] != rows["pruned, onnx"]["kl"]
    assert rows["pruned, onnx_int8"]["bytes"] < rows["pruned, onnx"]["bytes"] < rows["dense, onnx"]["bytes"]
    assert all(len(row["milliseconds"]) == len(row["speedup"]) == len(SIZES) for row in rows.values())


@pytest.mark.parametrize("options", [["--task.batch_size", "8"], ["--dense", "model"]])
def test_what_is_for_measuring_alone_is_refused_without(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(tmp_path), "--to", "onnx", *options]) == 2
    assert f"{options[0]} is of use with --measure alone" in capsys.readouterr().err
