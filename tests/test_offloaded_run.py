"""A run whose layers lie on disk is the run whose layers do not; what cannot be with it is refused at once."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM

from hf_mabprune import load_pruned
from hf_mabprune.checkpoints.offload import offload_of
from hf_mabprune.checks import check_settings
from hf_mabprune.config import check
from hf_mabprune.evaluation.report import Report
from hf_mabprune.pipeline import prune, prune_from_config
from hf_mabprune.runtime.accelerator import make_accelerator
from hf_mabprune.session import open_session
from tests.problems import settings_for

pytestmark = [pytest.mark.whole, pytest.mark.usefixtures("without_figures")]
LAYERS = {"model.layers.0": "disk", "model.layers.1": "disk"}
REST = dict.fromkeys(("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"), "cpu")
ALONE = {"rounds": None, "pulls_per_arm": None}
KINDS: dict[str, dict[str, Any]] = {
    "by default": {"search": ALONE},
    "by a criterion, refitted bottom-up": {
        "search": {**ALONE, "criterion": "obs"},
        "compensation": {"name": "least_squares", "bottom_up": True, "both_sides": True},
    },
    "a whole layer": {"prune": {"arms": ["layer"], "target": {"layers": 0.5}}, "search": {}},
    "uniform, without a refit": {
        "search": {**ALONE, "criterion": "magnitude"},
        "compensation": None,
        "prune": {"layout": "uniform", "arms": ["neuron"], "target": {"neurons": 0.5}},
    },
}


def settings(folder: Path, files: dict[str, str], model: dict[str, Any], **changes: Any) -> Any:
    folder.mkdir()
    made = settings_for(folder, files, "llama", **changes).model_dump()
    return check({**made, "model": {**made["model"], **model}})


@pytest.mark.parametrize("kind", KINDS)
def test_layers_on_disk_change_no_result(kind: str, tmp_path: Path, files: dict[str, str]) -> None:
    scratch = tmp_path / "made" / "scratch"
    here = settings(tmp_path / "here", files, {}, **KINDS[kind])
    places = {"device_map": {**REST, **LAYERS}, "offload_folder": str(scratch)}
    away = settings(tmp_path / "away", files, places, **KINDS[kind])
    plain, result = prune_from_config(here), prune_from_config(away)
    assert offload_of(result.model) and not offload_of(plain.model)
    arms, known = (pd.read_parquet(Path(run.output.dir) / "mabprune" / "arms.parquet") for run in (away, here))
    assert (arms["kept"] == known["kept"]).all()
    found, expected = (load_pruned(run.output.dir).state_dict() for run in (away, here))
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-4, atol=1e-5)
    report, other = (Report.from_json(Path(run.output.dir) / "mabprune" / "report.json") for run in (away, here))
    assert report.after.kl == pytest.approx(other.after.kl, rel=1e-3)
    assert report.before.loss == pytest.approx(other.before.loss, rel=1e-5)
    assert not list(scratch.iterdir()), "temporary files go with the run"


def test_what_does_not_fit_is_on_disk(tmp_path: Path, files: dict[str, str]) -> None:
    session = open_session(
        settings(tmp_path / "a", files, {"device_map": "auto", "max_memory": {"cpu": "70KB"}}), make_accelerator()
    )
    assert offload_of(session.dense)
    roomy = open_session(settings(tmp_path / "b", files, {"device_map": "auto"}), make_accelerator())
    assert offload_of(roomy.dense) is None, "all of it fits"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recovery": {"epochs": 1}}, "recovery trains all weights at once, .* set recovery: null"),
        ({"search": {"products": "float16"}}, "search.products float16 takes a second copy"),
    ],
)
def test_what_cannot_be_with_it_is_refused(
    changes: dict[str, Any], message: str, tmp_path: Path, files: dict[str, str]
) -> None:
    with pytest.raises(ValueError, match=message):
        check_settings(settings(tmp_path / "run", files, {"device_map": "auto"}, **changes))


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"device_map": "atuo"}, "'auto', 'balanced'"),
        ({"device_map": {"model.layers.0": "disk"}}, "model.embed_tokens.weight"),
        ({"device_map": "auto", "max_memory": {"cpu": "much"}}, "much"),
    ],
)
def test_a_map_that_transformers_refuses_is_named(
    model: dict[str, Any], said: str, tmp_path: Path, files: dict[str, str]
) -> None:
    with pytest.raises(ValueError, match=r"see model\.device_map") as refused:
        open_session(settings(tmp_path / "run", files, model), make_accelerator())
    assert said in str(refused.value)


def test_several_processes_are_refused(tmp_path: Path, files: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="one process runs, got 2 processes: start one"):
        check_settings(settings(tmp_path / "run", files, {"device_map": "auto"}))


def test_maps_that_say_too_little_or_too_much_are_refused(tmp_path: Path, files: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"model\.max_memory is for model.device_map: set that to auto"):
        settings(tmp_path / "run", files, {"max_memory": {"cpu": "1GB"}})
    with pytest.raises(ValueError, match="'' is the whole model: name it alone"):
        settings(tmp_path / "other", files, {"device_map": {"": "cpu", **LAYERS}})


def test_a_model_that_is_spread_already_is_refused(tmp_path: Path, files: dict[str, str]) -> None:
    name = settings(tmp_path / "run", files, {}).model.name
    spread = AutoModelForCausalLM.from_pretrained(name, device_map={**REST, **LAYERS})
    with pytest.raises(ValueError, match=r"or name it in a config, with model\.device_map"):
        prune(spread, None, [], [], [], {"neurons": 0.5}, tmp_path / "out")
