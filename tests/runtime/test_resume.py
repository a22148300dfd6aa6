"""Stopped at any moment, a run ends as if it had not been: kill -9, signals, full disks, two runs at once."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import yaml
from datasets import Dataset

from hf_mabprune.artifacts.run_folder import SEARCH_STATE
from hf_mabprune.runtime.saved import pack, unpack
from tests.heard import HEARD
from tests.problems import sentences, settings_for, write_splits
from tests.runtime.runs import Runs, outcome, wait_for
from tests.seeds import moved

pytestmark = pytest.mark.whole


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a second or two, four rounds."""
    folder = tmp_path_factory.mktemp("config")
    search = {"rounds": 4, "pulls_per_arm": 8, "policy": {"name": "thompson"}}
    settings = settings_for(folder, write_splits(folder), "bert", search=search)
    path = folder / "run.yaml"
    path.write_text(settings.to_yaml())
    return path


@pytest.fixture(scope="module")
def whole(runs: Runs, config: Path) -> tuple[dict[str, Any], float]:
    """What a run gives that nothing interrupts, and its seconds."""
    folder = config.parent / "whole"
    start = time.monotonic()
    assert runs.finish("prune", "--config", str(config), "--output.dir", str(folder)) == 0, runs.said()
    return outcome(folder), time.monotonic() - start


def left_behind(folder: Path) -> list[str]:
    """What lies beside an output folder and is no output."""
    return [path.name for path in folder.parent.iterdir() if folder.name in path.name and path != folder]


def kill_and_resume(runs: Runs, config: Path, whole: tuple[dict[str, Any], float], kills: int, seed: int) -> None:
    """Kills runs at random moments, some more than once, and lets each end."""
    rng, (expected, seconds) = np.random.default_rng(moved(seed)), whole
    killed = number = 0
    while killed < kills:
        number += 1
        assert number < 4 * kills, "too many runs ended before they were killed"
        folder = config.parent / f"killed{seed}_{number}"
        command = ["prune", "--config", str(config), "--output.dir", str(folder)]
        for attempt in range(int(rng.integers(1, 3))):
            process = runs.start(*command, *(["--resume"] if attempt else []))
            time.sleep(rng.uniform(0, seconds))
            os.kill(process, signal.SIGKILL)
            in_time = runs.wait(process) == -signal.SIGKILL
            killed += in_time
            seconds *= 1.0 if in_time else 0.7  # the machine has less to do than when `whole` was timed
            if folder.exists():
                assert outcome(folder) == expected, "an output that is there is whole"
        assert runs.finish(*command, "--resume") == 0, runs.said()
        assert outcome(folder) == expected
        assert not left_behind(folder)


def test_six_kills_at_random_moments(runs: Runs, config: Path, whole: tuple[dict[str, Any], float]) -> None:
    kill_and_resume(runs, config, whole, kills=6, seed=0)


@pytest.mark.slow
def test_fifty_kills_at_random_moments(runs: Runs, config: Path, whole: tuple[dict[str, Any], float]) -> None:
    kill_and_resume(runs, config, whole, kills=50, seed=1)


def stop_and_resume(runs: Runs, config: Path, whole: tuple[dict[str, Any], float], stops: int, seed: int) -> None:
    """Sends signals at random moments; each run ends soon, in one line, and goes on to the same bytes."""
    rng, (expected, seconds) = np.random.default_rng(moved(seed)), whole
    stopped = number = 0
    while stopped < stops:
        number += 1
        assert number < 4 * stops, "too many runs ended before they were stopped"
        folder = config.parent / f"signal{seed}_{number}"
        command = ["prune", "--config", str(config), "--output.dir", str(folder)]
        process = runs.start(*command)
        time.sleep(rng.uniform(0.02, 1.2 * seconds))
        sent, start = int(rng.choice(HEARD)), time.monotonic()
        with suppress(ProcessLookupError):
            os.kill(process, sent)
        code, said = runs.wait(process), runs.said()
        assert time.monotonic() - start < 20, said
        # Before the command line listens it ends by the signal itself, and after its last line by none.
        assert code in (0, 128 + sent, -sent) and "Traceback" not in said, said
        if code == 128 + sent:
            stopped += 1
            assert said.splitlines()[-1].startswith(f"mabprune: stopped by {signal.Signals(sent).name}"), said
        assert runs.finish(*command, "--resume") == 0, runs.said()
        assert outcome(folder) == expected
        assert not left_behind(folder)


def test_six_signals_at_random_moments(runs: Runs, config: Path, whole: tuple[dict[str, Any], float]) -> None:
    stop_and_resume(runs, config, whole, stops=6, seed=2)


@pytest.mark.slow
def test_a_hundred_signals_at_random_moments_beside_a_load(
    runs: Runs, config: Path, whole: tuple[dict[str, Any], float]
) -> None:
    load = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    try:
        stop_and_resume(runs, config, whole, stops=100, seed=3)
    finally:
        for process in load:
            process.kill()
            process.wait()


@pytest.mark.parametrize("number", HEARD)
def test_a_signal_saves_and_names_the_command_that_goes_on(
    number: signal.Signals, runs: Runs, config: Path, whole: tuple[dict[str, Any], float]
) -> None:
    folder = config.parent / f"stopped_{number.name}"
    process = runs.start("prune", "--config", str(config), "--output.dir", str(folder))
    wait_for(Path(f"{folder}.state") / SEARCH_STATE, process)
    os.kill(process, number)
    assert runs.wait(process) == 128 + number
    line = runs.said().splitlines()[-1]
    assert line.startswith(f"mabprune: stopped by {number.name}; go on with: mabprune prune --config ")
    assert "Traceback" not in runs.said() and not folder.exists()

    refused = runs.finish("prune", "--config", str(config), "--output.dir", str(folder))
    assert refused == 2 and "holds an interrupted run: go on with --resume" in runs.said()
    assert runs.finish(*line.partition("go on with: mabprune ")[2].split()) == 0, runs.said()
    assert "resumed in round" in runs.said() and outcome(folder) == whole[0]
    assert not left_behind(folder)


def test_a_signal_in_recovery_keeps_the_steps_that_were_taken(runs: Runs, config: Path) -> None:
    """Without a search, so that the training alone is what there is to go on from."""
    training = {"epochs": 400, "batch_size": 4, "max_steps": 120}
    folder, settings = config.parent / "halted", yaml.safe_load(config.read_text())
    settings |= {"search": {"criterion": "obs"}, "recovery": training}
    (path := config.parent / "recovery.yaml").write_text(yaml.safe_dump(settings))
    expected = config.parent / "recovered"
    assert runs.finish("prune", "--config", str(path), "--output.dir", str(expected)) == 0, runs.said()
    command = ["prune", "--config", str(path), "--output.dir", str(folder)]
    state = Path(f"{folder}.state")
    for wait in np.geomspace(0.3, 30, 12):
        process = runs.start(*command)
        while "dense: " not in runs.said():  # the last line before criterion, cut and recovery
            time.sleep(0.02)
        time.sleep(wait)
        os.kill(process, signal.SIGTERM)
        if runs.wait(process) == 0:
            raise AssertionError("every signal came before or after the recovery")
        if list(state.glob("training_*.safetensors")):
            break
    assert "go on with: mabprune prune --config" in runs.said().splitlines()[-1]
    assert runs.finish(*command) == 2 and "holds an interrupted run: go on with --resume" in runs.said()
    assert runs.finish(*command, "--resume", "--seed", "1") == 2 and "had other settings: seed" in runs.said()
    assert runs.finish(*command, "--resume") == 0 and "recovery goes on after step" in runs.said(), runs.said()
    assert outcome(folder) == outcome(expected)
    assert not left_behind(folder)


def test_two_runs_keep_out_of_one_folder(runs: Runs, config: Path) -> None:
    folder = config.parent / "taken"
    command = ["prune", "--config", str(config), "--output.dir", str(folder), "--output.overwrite", "true"]
    process = runs.start(*command)
    wait_for(Path(f"{folder}.state") / SEARCH_STATE, process)
    assert runs.finish(*command) == 2 and "another run is writing to" in runs.said()
    assert runs.wait(process) == 0 and folder.exists()


def test_a_disk_that_fills_up_loses_nothing(runs: Runs, config: Path, whole: tuple[dict[str, Any], float]) -> None:
    folder = config.parent / "full"
    command = ["prune", "--config", str(config), "--output.dir", str(folder)]
    limit = (config.parent / "whole" / "model.safetensors").stat().st_size // 2
    assert runs.finish(*command, file_limit=limit) == 2, runs.said()
    assert "cannot be written" in runs.said() and "Traceback" not in runs.said() and not folder.exists()
    assert [path for path in left_behind(folder) if path != "full.state"] == []
    assert runs.finish(*command, "--resume") == 0
    assert outcome(folder) == whole[0]


def test_resume_begins_where_nothing_is_saved_and_is_content_with_what_is_finished(
    runs: Runs, config: Path, whole: tuple[dict[str, Any], float]
) -> None:
    folder = config.parent / "requeued"
    command = ["prune", "--config", str(config), "--output.dir", str(folder), "--resume"]
    assert runs.finish(*command) == 0 and outcome(folder) == whole[0]
    assert runs.finish(*command) == 0 and runs.said() == f"finished already: {folder}\n"


@pytest.fixture
def interrupted(runs: Runs, config: Path, tmp_path: Path) -> list[str]:
    """The command of a run that was stopped after its first round."""
    command = ["prune", "--config", str(config), "--output.dir", str(tmp_path / "out")]
    process = runs.start(*command)
    wait_for(tmp_path / "out.state" / SEARCH_STATE, process)
    os.kill(process, signal.SIGKILL)
    runs.wait(process)
    return command


def test_what_is_resumed_must_be_the_same_run(runs: Runs, interrupted: list[str], tmp_path: Path) -> None:
    assert runs.finish(*interrupted, "--resume", "--search.rounds", "5", "--seed", "1") == 2
    assert "had other settings: search.rounds, seed; go on with its own" in runs.said()
    again = Dataset.from_dict(sentences(48, 9))
    settings = yaml.safe_load((tmp_path / "out.state" / "config.yaml").read_text())
    train = Path(settings["task"]["dataset"]["data_files"]["train"])
    before = train.read_bytes()
    try:
        again.to_parquet(train)
        assert runs.finish(*interrupted, "--resume") == 2
        assert "was saved with another model, other data or other settings" in runs.said()
    finally:
        train.write_bytes(before)
    assert runs.finish(*interrupted, "--resume") == 0


def test_a_state_of_another_version_or_a_broken_one_is_refused(
    runs: Runs, interrupted: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "out.state" / SEARCH_STATE
    saved = path.read_bytes()
    older = safetensors.numpy.save({}, metadata={"format": "3", "tree": "{}"})
    path.write_bytes(older)
    assert runs.finish(*interrupted, "--resume") == 2 and "has format 3, this version" in runs.said()
    path.write_bytes(saved.replace(b"PCG64", b"PCG65"))
    assert runs.finish(*interrupted, "--resume") == 2 and "is damaged: its checksum does not hold" in runs.said()
    path.write_bytes(saved[:100])
    assert runs.finish(*interrupted, "--resume") == 2 and "is no saved search" in runs.said()
    assert runs.finish(*interrupted, "--output.overwrite", "true") == 0, "overwriting starts anew"


def test_states_are_packed_without_loss(tmp_path: Path) -> None:
    rng = np.random.default_rng(moved(0))
    state = {
        "a": rng.random(5),
        "b": {"c": np.arange(3), "d": [1, 2.5, None, "x"], "rng": rng.bit_generator.state},
        "kept": np.array([True, False]),
        "empty": np.empty(0, dtype=np.int64),
    }
    again = unpack(pack(state), tmp_path)
    assert np.array_equal(again["a"], state["a"]) and np.array_equal(again["kept"], state["kept"])
    assert again["b"]["rng"] == state["b"]["rng"] and again["b"]["d"] == state["b"]["d"]
    assert again["empty"].shape == (0,) and again["b"]["c"].dtype == np.int64
