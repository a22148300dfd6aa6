"""One process and several give the same numbers."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.test_pipeline import files, settings_for  # noqa: F401

ROOT = Path(__file__).parent.parent


def launch(config: Path, processes: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "accelerate.commands.launch"]
    if processes == 2:
        command += ["--config_file", str(ROOT / "configs/accelerate/cpu_2.yaml"), "--main_process_port", "0"]
    else:
        command += ["--config_file", str(ROOT / "configs/accelerate/one_process.yaml")]
    command += [str(ROOT / "scripts/prune.py"), "--config", str(config)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        command, capture_output=True, text=True, env=environment, stdin=subprocess.DEVNULL, timeout=300
    )


def test_two_processes_select_the_same_arms_as_one(tmp_path: Path, files: dict[str, str]) -> None:  # noqa: F811
    reports = []
    for processes in (1, 2):
        settings = settings_for(tmp_path, files, "bert", output={"dir": str(tmp_path / f"out{processes}")})
        config = tmp_path / f"run{processes}.yaml"
        config.write_text(settings.to_yaml())
        done = launch(config, processes)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("load it:") == 1, "only the main process speaks"
        reports.append(json.loads((tmp_path / f"out{processes}" / "mabprune" / "report.json").read_text()))
    one, two = reports
    assert (one["search"]["processes"], two["search"]["processes"]) == (1, 2)
    assert one["kept"] == two["kept"] and one["after"]["metrics"] == two["after"]["metrics"]
    assert one["search"]["pulls"] == two["search"]["pulls"]
