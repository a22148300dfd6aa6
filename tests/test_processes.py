"""One process and several give the same numbers, also where a run changes their number half way."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from hf_mabprune.artifacts.run_folder import SEARCH_STATE
from tests.test_pipeline import files, settings_for  # noqa: F401
from tests.test_resume import outcome

ROOT = Path(__file__).parent.parent
LAUNCH_FILES = {1: "one_process.yaml", 2: "cpu_2.yaml", 4: "cpu_4.yaml"}


def launch(config: Path, processes: int, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "accelerate.commands.launch"]
    command += ["--config_file", str(ROOT / "configs/accelerate" / LAUNCH_FILES[processes])]
    command += ["--main_process_port", "0"] if processes > 1 else []
    command += [str(ROOT / "scripts/prune.py"), "--config", str(config), *arguments]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        stdin=subprocess.DEVNULL,
    )


@pytest.fixture
def config(tmp_path: Path, files: dict[str, str]) -> Path:  # noqa: F811
    search = {"rounds": 3, "pulls_per_arm": 6, "policy": {"name": "softmax"}}
    target = {"target": {"neurons": [0.25, 0.5], "heads": [0.25, 0.5]}}
    settings = settings_for(tmp_path, files, "bert", search=search, prune=target, output={"log_with": ["tensorboard"]})
    path = tmp_path / "run.yaml"
    path.write_text(settings.to_yaml())
    return path


def finish(config: Path, processes: int, *arguments: str) -> str:
    """What a launch printed."""
    out, errors = (run := launch(config, processes, *arguments)).communicate(timeout=300)
    assert run.returncode == 0, errors
    return out


def timeless(report: Any) -> Any:
    """A report without seconds, and what follows from them."""
    if isinstance(report, dict):
        left_out = {"seconds", "latency_ms", "speedup", "processes"}
        return {name: timeless(part) for name, part in report.items() if name not in left_out}
    return [timeless(part) for part in report] if isinstance(report, list) else report


def test_one_two_and_four_processes_give_the_same_report_and_checkpoint(config: Path) -> None:
    found = {}
    for processes in LAUNCH_FILES:
        folder = config.parent / f"out{processes}"
        said = finish(config, processes, "--output.dir", str(folder))
        assert said.count("load it:") == 1 and said.count("round 1/3") == 1, "only the main process speaks"
        smallest = folder / "neurons-0.5-heads-0.5"
        report = json.loads((smallest / "mabprune" / "report.json").read_text())
        assert report["search"]["processes"] == processes, "that many really ran"
        found[processes] = (timeless(report), outcome(smallest), outcome(folder / "neurons-0.25-heads-0.25"))
        assert list(Path(f"{folder}.logs").rglob("events.out.tfevents*")), "the tracker wrote"
    assert found[2] == found[1]
    assert found[4] == found[1]


def test_a_run_killed_on_two_processes_goes_on_in_one(config: Path) -> None:
    folder = config.parent / "changed"
    run = launch(config, 2, "--output.dir", str(folder))
    while not (config.parent / "changed.state" / SEARCH_STATE).exists():
        assert run.poll() is None, run.communicate()[1]
        time.sleep(0.01)
    launcher = psutil.Process(run.pid)  # its workers are in sessions of their own
    for process in [launcher, *launcher.children(recursive=True)]:
        process.kill()
    run.communicate()
    assert not folder.exists()
    assert "resumed in round" in finish(config, 1, "--output.dir", str(folder), "--resume")
    finish(config, 1, "--output.dir", str(config.parent / "whole"))
    size = "neurons-0.5-heads-0.5"
    assert outcome(folder / size) == outcome(config.parent / "whole" / size)
