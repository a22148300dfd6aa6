"""Runs a study of a test as a program of its own, and kills it in the middle."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[3]
SECONDS = 240


def kill_after_a_unit(module: str, data: Path, out: Path) -> None:
    """Starts `python -m module DATA OUT`, and kills it and its processes once it has kept a unit.

    Args:
        module: Module that runs a study in the folder OUT.
        data: Folder of data.
        out: Folder of the study.

    Raises:
        AssertionError: If it ends, or no unit is kept in time.
    """
    command = [sys.executable, "-m", module, str(data), str(out)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        deadline = time.monotonic() + SECONDS
        while not list(out.glob("units/*.parquet")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
