"""What the user types, and nothing found inside a checkpoint, decides about remote code and metrics from elsewhere."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from hf_mabprune.artifacts import checksums
from hf_mabprune.artifacts.run_folder import RunFolder
from hf_mabprune.cli.commands import main
from hf_mabprune.pipeline import prune_from_config
from tests.problems import settings_for, write_splits

pytestmark = [pytest.mark.whole, pytest.mark.usefixtures("without_figures")]
HOSTILE = """
from pathlib import Path
Path({trace!r}).write_text("ran")
from transformers import BertConfig, BertForSequenceClassification
class Config(BertConfig):
    pass
class MyForSequenceClassification(BertForSequenceClassification):
    config_class = Config
"""
METRIC = """
from pathlib import Path
Path({trace!r}).write_text("ran")
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("trust")
    prune = {"layout": "uniform", "target": {"neurons": 0.5}}
    prune_from_config(settings_for(folder, write_splits(folder), "bert", prune=prune))
    return folder / "out"


@pytest.fixture
def hostile(tmp_path: Path, finished: Path) -> Path:
    """A finished run whose checkpoint brings code, and whose config asks for that to be run."""
    folder = shutil.copytree(finished, tmp_path / "out")
    (folder / "hostile.py").write_text(HOSTILE.format(trace=str(tmp_path / "trace")))
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {
        "AutoConfig": "hostile.Config",
        "AutoModelForSequenceClassification": "hostile.MyForSequenceClassification",
    }
    (folder / "config.json").write_text(json.dumps(config))
    (tmp_path / "metric").mkdir()
    (tmp_path / "metric" / "metric.py").write_text(METRIC.format(trace=str(tmp_path / "trace")))
    ask(folder, "model", trust_remote_code=True)
    ask(folder, "task", metrics=[str(tmp_path / "metric")])
    ask(folder, "output", push_to_hub="somebody/else", log_with=["tensorboard"], log_dir=str(tmp_path / "trace"))
    return folder


def ask(folder: Path, part: str, **settings: Any) -> None:
    """Changes the config inside a checkpoint, and the checksums with it."""
    path = folder / "mabprune" / "config.yaml"
    config = yaml.safe_load(path.read_text())
    config[part] |= settings
    path.write_text(yaml.safe_dump(config))
    checksums.write(folder, RunFolder(folder).checksums)


def test_evaluate_runs_nothing_that_the_folder_brings(
    hostile: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.warns(UserWarning, match="only --task.metrics can choose"):
        assert main(["evaluate", str(hostile)]) == 0
    assert "accuracy" in capsys.readouterr().out and not (tmp_path / "trace").exists()


def test_cut_runs_and_writes_nothing_that_the_folder_brings(hostile: Path, tmp_path: Path) -> None:
    command = ["cut", str(hostile), "--target.neurons", "0.25", "--output.dir", str(tmp_path / "cut")]
    with pytest.warns(UserWarning, match="only --model.trust_remote_code can allow"):
        assert main(command) == 0
    assert (tmp_path / "cut" / "config.json").exists() and not (tmp_path / "trace").exists()
    ask(hostile, "model", name=str(hostile))
    with pytest.warns(UserWarning):
        assert main([*command, "--output.dir", str(tmp_path / "again")]) == 2, "its own model has other arms"
    assert not (tmp_path / "trace").exists()


def test_verify_runs_nothing_that_the_folder_brings(
    hostile: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.warns(UserWarning, match="only --model.trust_remote_code can allow"):
        assert main(["verify", str(hostile), "--base", str(finished.parent / "model")]) == 1
    said = capsys.readouterr().out
    assert "code: FAILED: hostile.py is code that no run writes" in said
    assert "other files: FAILED: hostile.py is not of this run" in said
    assert not (tmp_path / "trace").exists()


def test_the_user_can_allow_it(hostile: Path, tmp_path: Path) -> None:
    with pytest.warns(UserWarning):
        assert main(["evaluate", str(hostile), "--model.trust_remote_code", "true"]) == 0
    assert (tmp_path / "trace").exists()
