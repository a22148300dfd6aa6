"""What a user gets wrong ends in one line that says the rule, the value and the remedy, and leaves nothing behind.

Faults that can be known without the model's weights are refused before those are loaded.
"""

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers

from hf_mabprune.artifacts.run_folder import SEARCH_STATE
from hf_mabprune.cli.commands import main
from hf_mabprune.runtime.files import claim
from tests.cli.mistakes import LLAMA, TABLES, Case
from tests.cli.world import break_runs, make_data, make_models, write_yaml

pytestmark = pytest.mark.whole


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with models, data, a finished run and an interrupted one."""
    folder = tmp_path_factory.mktemp("world")
    make_models(folder / "models")
    make_data(folder / "data")
    (folder / "taken").mkdir()
    (folder / "taken" / "thesis.txt").write_text("years of work")
    claim(folder / "waiting.state")
    (folder / "waiting.state" / SEARCH_STATE).write_bytes(b"rounds and rounds")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["prune", "--config", write_yaml(folder / "run.yaml", {"output.dir": "run"})]) == 0
    break_runs(folder)
    return folder


@pytest.fixture
def refused(
    world: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    recwarn: pytest.WarningsRecorder,
) -> Callable[..., str]:
    """Runs a command in the world, checks that it is refused as it should be, and gives what it says."""
    monkeypatch.chdir(world)
    monkeypatch.setenv("HF_TOKEN", "a-token-of-nobody")
    for name in ("transformers", "datasets", "huggingface_hub"):
        for handler in logging.getLogger(name).handlers:
            if type(handler) is logging.StreamHandler:  # not those of pytest
                monkeypatch.setattr(handler, "stream", sys.stderr)

    def run(*arguments: str, weights: bool) -> str:
        before = contents(world)
        if not weights:
            monkeypatch.setattr(transformers.PreTrainedModel, "from_pretrained", too_late)
        assert main(arguments) == 2
        output = capsys.readouterr()
        assert output.err.startswith("mabprune: ") and output.err.count("\n") == 1, output.err
        assert output.out == ""
        assert contents(world) == before, "nothing is left behind, and nothing is touched"
        assert not [warning for warning in recwarn if issubclass(warning.category, UserWarning)]
        return output.err

    return run


def too_late(*arguments: Any, **options: Any) -> None:
    pytest.fail("the weights were loaded although the fault could be known before")


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    """Path -> when it was changed, and its size."""
    found = {str(path.relative_to(folder)): path.stat() for path in folder.rglob("*")}
    return {path: (stat.st_mtime_ns, stat.st_size) for path, stat in found.items()}


@pytest.mark.parametrize(
    "mistake",
    [pytest.param(case, id=f"{part}-{name}") for part, cases in TABLES.items() for name, case in cases.items()],
)
def test_a_run_is_refused(mistake: Case, refused: Callable[..., str], tmp_path: Path) -> None:
    file = write_yaml(tmp_path / "run.yaml", mistake.settings)
    line = refused("prune", "--config", file, *mistake.overrides, weights=mistake.weights)
    for part in mistake.says:
        assert part in line


@pytest.mark.parametrize(
    ("content", "says"),
    [
        pytest.param("", "must hold a mapping of settings, got an empty file", id="empty"),
        pytest.param("- model\n- task\n", "must hold a mapping of settings, got ['model', 'task']", id="list"),
        pytest.param("prune", "must hold a mapping of settings, got prune", id="word"),
        pytest.param("model: {name: x\ntask: [\n", "run.yaml, line 2, column 5 is no YAML: ", id="open_bracket"),
        pytest.param("model:\n\tname: x\n", "run.yaml, line 2, column 1 is no YAML: ", id="tab"),
        pytest.param("seed: 1\n", "missing key 'model'; missing key 'prune'", id="parts_missing"),
    ],
)
def test_a_file_that_is_no_config_is_refused(
    content: str, says: str, refused: Callable[..., str], tmp_path: Path
) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(content)
    assert says in refused("prune", "--config", str(file), weights=False)


@pytest.mark.parametrize(
    ("command", "says", "weights"),
    [
        pytest.param(
            "prune --config nope.yaml", "no config file 'nope.yaml'; paths are relative to ", False, id="no_config"
        ),
        pytest.param(
            "prune --config data", "the config 'data' is a folder: give a YAML file", False, id="config_is_a_folder"
        ),
        pytest.param("plan --config run.yaml --prune.target.neurons 0.99", "can is 0.833", True, id="plan"),
        pytest.param("cut data --target.macs 0.3", "data holds no mabprune/config.yaml", False, id="cut_no_run"),
        pytest.param("cut nope --target.macs 0.3", "nope holds no mabprune/config.yaml", False, id="cut_nothing"),
        pytest.param("cut run --target.parameters 0.95", "the nearest that can is 0.56", True, id="cut_too_much"),
        pytest.param("cut run --target.macs 2", "must be a number > 0 and < 1, ", False, id="cut_out_of_range"),
        pytest.param("cut run --target.size 0.3", "unknown key 'prune.target.size'", False, id="cut_unknown_target"),
        pytest.param("cut run --target.macs 0.3 --output.dir run", "run is the run to cut from", False, id="cut_over"),
        pytest.param(
            "cut run --target.macs 0.3 --model.name models/four_layers",
            "the finished search had 20 arms that do not fit this model's 40 (in site): keep its model, arms and",
            True,
            id="cut_another_model",
        ),
        pytest.param(
            "cut run --target.macs 0.3 --prune.block_size 4", "20 arms that do not fit", True, id="cut_other_blocks"
        ),
        pytest.param(
            "cut broken_report --target.macs 0.3",
            "report.json has changed, says SHA256SUMS",
            False,
            id="cut_broken_report",
        ),
        pytest.param(
            "cut newer_report --target.macs 0.3",
            "newer_report/mabprune/report.json has changed, says SHA256SUMS",
            False,
            id="cut_newer_report",
        ),
        pytest.param("cut other_settings --target.macs 0.3", "part 'model'", False, id="cut_other_settings"),
        pytest.param(
            "evaluate run --config other_settings/mabprune/config.yaml",
            "model must be a mapping",
            False,
            id="evaluate_word",
        ),
        pytest.param(
            "cut no_report --target.macs 0.3", "report.json is missing, says SHA256SUMS", False, id="cut_no_report"
        ),
        pytest.param(
            "cut broken_arms --target.macs 0.3", "broken_arms/mabprune/arms.parquet", False, id="cut_no_arms"
        ),
        pytest.param(
            "cut broken_settings --target.macs 0.3",
            "mabprune/config.yaml, line 2, column 1 is no YAML",
            False,
            id="cut_no_yaml",
        ),
        pytest.param(
            "evaluate models/bert", "config.yaml, so it is no run's output: name data", False, id="evaluate_no_run"
        ),
        pytest.param("evaluate run --config nope.yaml", "no config file 'nope.yaml'", False, id="evaluate_no_config"),
        pytest.param("evaluate run --task.batchsize 8", "mean 'task.batch_size'?", False, id="evaluate_unknown_key"),
        pytest.param(
            "evaluate models/no_config --config run.yaml", "holds no config.json", False, id="evaluate_no_model"
        ),
        pytest.param(
            "evaluate models/truncated --config run.yaml", "file not fully covered", True, id="evaluate_truncated"
        ),
        pytest.param(
            "evaluate models/no_classifier --config run.yaml", "lack classifier.bias", True, id="evaluate_random_head"
        ),
        pytest.param(
            "evaluate run --task.columns.text sentense", "split 'test' has no column", False, id="evaluate_no_column"
        ),
        pytest.param("push nope a/b", "no checkpoint folder at nope: give the output.dir", False, id="push_nothing"),
        pytest.param("push models/no_weights a/b", "a checkpoint needs *.safetensors", False, id="push_no_weights"),
        pytest.param("push models/no_config a/b", "a checkpoint needs config.json", False, id="push_no_config"),
        pytest.param("push run a/b/c", "repo_id must be name or owner/name", False, id="push_no_name"),
        pytest.param("push broken_report a/b", "broken_report/mabprune is not of this", False, id="push_no_report"),
    ],
)
def test_other_commands_are_refused(command: str, says: str, weights: bool, refused: Callable[..., str]) -> None:
    assert says in refused(*command.split(), weights=weights)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_refused(refused: Callable[..., str], world: Path, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    file = write_yaml(tmp_path / "run.yaml", {"output.dir": str(tmp_path / "locked" / "out")})
    assert "locked is not writable. Choose another output.dir" in refused("prune", "--config", file, weights=False)


def test_nothing_is_wrong_with_the_settings_that_the_mistakes_are_made_in(
    world: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(world)
    for settings in ({}, LLAMA):
        assert main(["plan", "--config", write_yaml(tmp_path / "run.yaml", settings)]) == 0
