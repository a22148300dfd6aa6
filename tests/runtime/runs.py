"""Runs of the command line in processes of their own, and what they leave in their folders."""

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd

ROOT = Path(__file__).parents[2]


class Runs:
    """Runs of the command line in processes of their own."""

    def __init__(self, folder: Path) -> None:
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        self.server = subprocess.Popen(
            [sys.executable, "-m", "tests.runtime.fork_server"],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.log = folder / "log.txt"
        assert self._answer() == "ready"

    def start(
        self, *arguments: str, file_limit: int | None = None, environment: dict[str, str] | None = None, rank: int = 0
    ) -> int:
        """Starts a run and gives its process id."""
        log = self.log.with_suffix(f".{rank}.txt") if rank else self.log
        environment = environment or {}
        self._ask({"arguments": arguments, "log": str(log), "file_limit": file_limit, "environment": environment})
        return int(self._answer())

    def start_several(self, processes: int, *arguments: str, own: tuple[str, ...] = ()) -> list[int]:
        """Starts the processes of one run, as `accelerate launch` would, and gives their ids.

        Args:
            processes: Number of processes.
            arguments: Command line of all.
            own: What the last process has besides.
        """
        shared = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        ranks = [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
        return [
            self.start(*arguments, *(own if rank == processes - 1 else ()), environment=each, rank=rank)
            for rank, each in enumerate(ranks)
        ]

    def wait(self, process: int) -> int:
        self._ask({"wait": process})
        return int(self._answer())

    def finish(self, *arguments: str, **options: Any) -> int:
        return self.wait(self.start(*arguments, **options))

    def said(self, processes: int = 1) -> str:
        """Gives what the last run has printed, of all its processes."""
        logs = [self.log, *(self.log.with_suffix(f".{rank}.txt") for rank in range(1, processes))]
        return "".join(log.read_text() for log in logs)

    def close(self) -> None:
        assert self.server.stdin
        self.server.stdin.close()
        self.server.wait()

    def _ask(self, question: dict[str, Any]) -> None:
        assert self.server.stdin
        self.server.stdin.write(json.dumps(question) + "\n")
        self.server.stdin.flush()

    def _answer(self) -> str:
        assert self.server.stdout
        return self.server.stdout.readline().strip()


def free_port() -> int:
    """Gives a port that nobody listens at."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def wait_for(path: Path, process: int) -> None:
    """Waits until a run has written a file."""
    for _ in range(3000):
        if path.exists():
            return
        time.sleep(0.005)
    os.kill(process, signal.SIGKILL)
    raise AssertionError(f"{path} never came")


def outcome(folder: Path) -> dict[str, Any]:
    """Gives selection and checkpoint of a finished run."""
    arms = pd.read_parquet(folder / "mabprune" / "arms.parquet")
    files = ("model.safetensors", "config.json", "modeling_pruned.py", "tokenizer.json")
    return {
        "arms": arms[["kept", "order", "pulls", "removed_round"]].to_numpy().tolist(),
        "means": arms["mean"].tolist(),
        "hashes": {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in files},
    }
