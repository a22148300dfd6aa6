"""A run on a quantised checkpoint is the run on what it stands for, and what it writes is an ordinary checkpoint."""

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from hf_mabprune import load_pruned, session
from hf_mabprune.cli import main
from hf_mabprune.config import PruneConfig, check
from hf_mabprune.pipeline import prune_from_config
from hf_mabprune.session import load_model
from tests.packed import pack_fp8, pack_mxfp4, say_quantised
from tests.problems import settings_for
from tests.seeds import moved
from tests.tiny_models import tiny_model

pytestmark = [pytest.mark.whole, pytest.mark.usefixtures("without_figures")]
PRUNE = {"target": {"neurons": 0.5}, "arms": ["neuron"], "layout": "uniform"}
CRITERION = {"rounds": None, "pulls_per_arm": None, "criterion": "magnitude"}


def settings(folder: Path, files: dict[str, str], /, model: dict[str, Any], **changes: Any) -> PruneConfig:
    folder.mkdir()
    made = settings_for(folder, files, "llama", **changes).model_dump()
    return check({**made, "model": {**made["model"], **model}})


@pytest.mark.parametrize("changes", [{}, {"prune": PRUNE, "search": CRITERION}])
def test_it_is_the_run_on_what_the_checkpoint_stands_for(
    changes: dict[str, Any], tmp_path: Path, files: dict[str, str]
) -> None:
    packed = settings(tmp_path / "packed", files, {"dequantize": True}, **changes)
    weights = pack_fp8(Path(packed.model.name))
    plain = settings(tmp_path / "plain", files, {}, **changes)
    save_file(weights, Path(plain.model.name) / "model.safetensors", {"format": "pt"})
    results = [prune_from_config(each) for each in (packed, plain)]
    assert results[0].report.before.loss == pytest.approx(results[1].report.before.loss, rel=1e-5)
    out, other = packed.output.dir, plain.output.dir
    arms, known = (pd.read_parquet(Path(place) / "mabprune" / "arms.parquet") for place in (out, other))
    assert (arms["kept"] == known["kept"]).all()
    found, expected = load_pruned(out).state_dict(), load_pruned(other).state_dict()
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-4, atol=1e-5)


def test_what_it_writes_is_an_ordinary_checkpoint(tmp_path: Path, files: dict[str, str]) -> None:
    run = settings(tmp_path / "packed", files, {"dequantize": True}, prune=PRUNE, search=CRITERION)
    pack_fp8(Path(run.model.name))
    prune_from_config(run)
    out = Path(run.output.dir)
    assert "quantization_config" not in json.loads((out / "config.json").read_text())
    again = AutoModelForCausalLM.from_pretrained(out)
    assert {weight.dtype for weight in again.parameters()} == {torch.float32}
    assert main(["verify", str(out), "--base", run.model.name]) == 0
    assert main(["evaluate", str(out), "--task.evaluation_examples", "8"]) == 0
    assert main(["cut", str(out), "--prune.target.neurons", "0.25", "--output.dir", str(tmp_path / "cut")]) == 0
    second = {**run.model_dump(), "model": {"name": str(out)}, "output": {"dir": str(tmp_path / "second")}}
    smaller = prune_from_config(check(second)).model
    assert smaller.config.intermediate_size < again.config.intermediate_size


def test_experts_of_gpt_oss_go_from_what_is_unpacked(tmp_path: Path, files: dict[str, str]) -> None:
    prune = {"target": {"experts": 0.5}, "arms": ["expert"], "layout": "uniform"}
    run = settings_for(tmp_path, files, "gpt_oss", prune=prune, search={**CRITERION, "criterion": "reap"})
    model = {**run.model.model_dump(), "dequantize": True}
    small = {"hidden_size": 32, "intermediate_size": 32, "head_dim": 8}
    tiny_model("gpt_oss", "AutoModelForCausalLM", **small).save_pretrained(run.model.name)
    pack_mxfp4(Path(run.model.name), torch.Generator().manual_seed(moved(0)))
    result = prune_from_config(check({**run.model_dump(), "model": model}))
    again = AutoModelForCausalLM.from_pretrained(run.output.dir)
    assert again.config.num_local_experts == again.model.layers[0].mlp.router.num_experts == 2
    assert result.report.reload["max_logit_difference"] < 1e-4
    assert again.num_parameters() == result.report.after.parameters


@pytest.mark.parametrize(
    ("stated", "dequantize", "said"),
    [
        ({"quant_method": "mxfp4"}, False, r"packed weights cannot be cut.*model\.dequantize: true"),
        ({"quant_method": "gptq", "bits": 4}, True, "quantised by gptq, which cannot be undone here"),
        (None, True, "is not quantised: leave model.dequantize out"),
    ],
)
def test_it_is_refused_before_weights_are_read(
    stated: dict[str, Any] | None,
    dequantize: bool,
    said: str,
    tmp_path: Path,
    files: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = settings(tmp_path / "run", files, {"dequantize": dequantize})
    if stated:
        say_quantised(Path(run.model.name), **stated)
    monkeypatch.setattr(session, "load_weights", lambda *_, **__: pytest.fail("weights were read"))
    with pytest.raises(ValueError, match=said):
        load_model(run.model, run.task)


def test_a_gguf_file_is_asked_for_by_both_settings(tmp_path: Path, files: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"set model\.dequantize: true"):
        settings(tmp_path / "run", files, {"gguf_file": "tiny.gguf"})
    shutil.rmtree(tmp_path / "run")
    run = settings(tmp_path / "run", files, {"gguf_file": "tiny.gguf", "dequantize": True})
    with pytest.raises(FileNotFoundError, match=r"holds no tiny\.gguf"):
        load_model(run.model, run.task)
