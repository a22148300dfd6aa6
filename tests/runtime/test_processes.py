"""One process and several give the same numbers, also where a run changes their number half way."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from hf_mabprune.artifacts.run_folder import SEARCH_STATE
from tests.problems import settings_for, write_splits
from tests.runtime.runs import ROOT, Runs, outcome, wait_for
from tests.small_tokenizers import small_tokenizer
from tests.tiny_models import tiny_model

LAUNCH_FILES = ROOT / "configs/accelerate"
SIZES = ("neurons-0.25-heads-0.25", "neurons-0.5-heads-0.5")
LAYERS = {"arms": ["layer"], "target": {"layers": 0.5}}
CUT = {"arms": ["neuron"], "target": {"neurons": 0.5}, "vocabulary": {"keep": "calibration"}}

pytestmark = pytest.mark.whole


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    search = {"rounds": 3, "pulls_per_arm": 6, "policy": {"name": "softmax"}}
    target = {"target": {"neurons": [0.25, 0.5], "heads": [0.25, 0.5]}}
    output = {"log_with": ["tensorboard"]}
    settings = settings_for(folder, write_splits(folder), "bert", search=search, prune=target, output=output)
    path = folder / "run.yaml"
    path.write_text(settings.to_yaml())
    return path


def finish(runs: Runs, config: Path, processes: int, *arguments: str) -> str:
    """Runs to the end in processes that the server forks; what all of them printed."""
    started = runs.start_several(processes, "prune", "--config", str(config), *arguments)
    assert [runs.wait(process) for process in started] == [0] * processes, runs.said(processes)
    return runs.said(processes)


def launch(config: Path, *arguments: str) -> str:
    """Runs to the end in two processes that `accelerate launch` starts; what they printed."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(LAUNCH_FILES / "cpu_2.yaml")]
    command += ["--main_process_port", "0", str(ROOT / "scripts/prune.py"), "--config", str(config), *arguments]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, stdin=subprocess.DEVNULL, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def timeless(report: Any) -> Any:
    """A report without seconds, and what follows from them."""
    if isinstance(report, dict):
        left_out = {"seconds", "latency_ms", "speedup", "processes"}
        return {name: timeless(part) for name, part in report.items() if name not in left_out}
    return [timeless(part) for part in report] if isinstance(report, list) else report


def checked(folder: Path, said: str, processes: int) -> Any:
    """Checks that as many processes as asked for took part and one of them spoke; gives what must be equal."""
    assert said.count("load it:") == 1 and said.count("round 1/3") == 1, "only the main process speaks"
    assert list(Path(f"{folder}.logs").rglob("events.out.tfevents*")), "the tracker wrote"
    report = json.loads((folder / SIZES[1] / "mabprune" / "report.json").read_text())
    assert report["search"]["processes"] == processes, "that many really ran"
    return timeless(report), [outcome(folder / size) for size in SIZES]


@pytest.fixture(scope="module")
def alone(runs: Runs, config: Path) -> Any:
    """What one process gives."""
    folder = config.parent / "out1"
    return checked(folder, finish(runs, config, 1, "--output.dir", str(folder)), 1)


def test_two_processes_of_a_launch_give_the_same_report_and_checkpoint(config: Path, alone: Any) -> None:
    folder = config.parent / "out2"
    assert checked(folder, launch(config, "--output.dir", str(folder)), 2) == alone


def test_four_processes_give_the_same_report_and_checkpoint(runs: Runs, config: Path, alone: Any) -> None:
    folder = config.parent / "out4"
    assert checked(folder, finish(runs, config, 4, "--output.dir", str(folder)), 4) == alone


@pytest.mark.parametrize(("name", "prune"), [("layers", LAYERS), ("vocabulary", CUT)])
def test_two_processes_leave_the_same_layers_and_tokens_as_one(
    name: str, prune: dict[str, Any], runs: Runs, config: Path
) -> None:
    settings = yaml.safe_load(config.read_text()) | {"prune": prune, "search": {"pulls_per_arm": 2}}
    if prune is CUT:
        tokenizer, model = small_tokenizer("wordpiece"), config.with_name("with_pieces")
        tokenizer.save_pretrained(model)
        tiny_model("bert", "AutoModelForSequenceClassification", vocab_size=len(tokenizer)).save_pretrained(model)
        settings["model"] = {"name": str(model)}
    path, found = config.with_name(f"{name}.yaml"), []
    path.write_text(yaml.safe_dump(settings))
    for processes in (1, 2):
        folder = config.parent / f"{name}{processes}"
        finish(runs, path, processes, "--output.dir", str(folder))
        report = json.loads((folder / "mabprune" / "report.json").read_text())
        assert report["search"]["processes"] == processes
        arms, weights = pd.read_parquet(folder / "mabprune" / "arms.parquet"), folder / "model.safetensors"
        tokens = (folder / "tokenizer.json").read_text()
        found.append((arms["kept"].tolist(), arms["mean"].tolist(), weights.read_bytes(), tokens))
        assert prune is LAYERS or report["vocabulary"]["tokens"][1] < len(small_tokenizer("wordpiece"))
    assert found[0] == found[1]


def test_a_run_killed_on_two_processes_goes_on_in_one(runs: Runs, config: Path, alone: Any) -> None:
    folder = config.parent / "changed"
    processes = runs.start_several(2, "prune", "--config", str(config), "--output.dir", str(folder))
    wait_for(Path(f"{folder}.state") / SEARCH_STATE, processes[0])
    for process in processes:
        os.kill(process, signal.SIGKILL)
    assert [runs.wait(process) for process in processes] == [-signal.SIGKILL] * 2
    assert not folder.exists()
    assert "resumed in round" in finish(runs, config, 1, "--output.dir", str(folder), "--resume")
    assert [outcome(folder / size) for size in SIZES] == alone[1]


@pytest.mark.parametrize(
    ("own", "names"), [(("--seed", "1"), "seed"), (("--task.batch_size", "4"), "task.batch_size")]
)
def test_processes_with_other_settings_stop_before_the_first_pull(
    own: tuple[str, str], names: str, runs: Runs, config: Path
) -> None:
    folder = config.parent / f"other_{names}"
    command = ["prune", "--config", str(config), "--output.dir", str(folder)]
    started = runs.start_several(2, *command, own=own)
    assert [runs.wait(process) for process in started] == [2, 2]
    assert f"but process 1 differs from process 0 in {names}: start them" in runs.said(2)
    assert not folder.exists() and not Path(f"{folder}.state").exists()


def test_a_process_that_fails_alone_says_why(runs: Runs, config: Path) -> None:
    folder = config.parent / "alone"
    command = ["prune", "--config", str(config), "--output.dir", str(folder)]
    started = runs.start_several(2, *command, own=("--search.raunds", "3"))
    assert runs.wait(started[1]) == 2
    os.kill(started[0], signal.SIGKILL)
    runs.wait(started[0])
    assert "mabprune: process 1: unknown key 'search.raunds'" in runs.said(2)


def test_launch_files_differ_in_the_number_of_processes_alone() -> None:
    two, four = (yaml.safe_load((LAUNCH_FILES / f"cpu_{number}.yaml").read_text()) for number in (2, 4))
    assert two["num_processes"] == 2 and four == two | {"num_processes": 4}
