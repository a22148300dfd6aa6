"""Workers that run cases: each has a server that processes are forked from, a Hub, and a place in the file system."""

import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.artifacts.hub_server import Answer, HubServer
from tests.hostile.case import Case, Done, Step
from tests.runtime.runs import ROOT, free_port

LIMIT = 60  # seconds
GRACE = 10  # seconds that the other processes of a launch have where one has failed
MEMORY = 6 * 2**30  # beyond what the server has
TOKEN = "hf_hostileWritesAbCdEfGh0123456789"
UPLOAD = r"POST /api/models/.*/(preupload|commit)/"


class WatchingHub(HubServer):
    """A Hub that notices when it is sent something while the lock of the output is free."""

    def __init__(self, users: dict[str, tuple[str, bool]]) -> None:
        self.lock_file: Path | None = None
        self.unlocked: list[str] = []
        super().__init__(users)

    def answer(self, method: str, target: str, headers: dict[str, str], body: bytes) -> Answer | None:
        """See `HubServer.answer`."""
        if self.lock_file and re.match(UPLOAD, f"{method} {target}") and is_free(self.lock_file):
            self.unlocked.append(f"{method} {target}")
        return super().answer(method, target, headers, body)

    def forget(self) -> None:
        """Begins anew."""
        self.repos, self.objects, self.faults, self.requests, self.unlocked = {}, {}, [], [], []
        self.lock_file = None

    def published(self) -> dict[str, dict[str, bytes]]:
        """Repository -> path -> content, all branches of it together."""
        return {
            name: {path: content for commits in repo.branches.values() for path, content in commits[-1].files.items()}
            for name, repo in self.repos.items()
        }


def is_free(lock: Path) -> bool:
    """Tells whether nobody holds the lock."""
    try:
        with lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    except FileNotFoundError:
        return True
    except OSError:
        return False


class Worker:
    """One at a time, runs cases.

    Args:
        place: Folder of its own: the cases, their output, the caches of the libraries.
        world: Folder of models, data and runs that cases take copies of.
    """

    def __init__(self, place: Path, world: Path) -> None:
        self.place, self.world = place, world
        self.hub = WatchingHub({TOKEN: ("me", True)})
        place.mkdir(parents=True)
        kept = {name: value for name, value in os.environ.items() if not re.match("HF_|HUGGING|.*_proxy$", name, re.I)}
        environment = kept | {
            "HF_ENDPOINT": self.hub.url,
            "HF_HOME": str(place / "home"),
            "HF_TOKEN": TOKEN,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "MKL_NUM_THREADS": "1",
        }
        self.server = subprocess.Popen(
            [sys.executable, "-m", "tests.hostile.server"], cwd=ROOT, env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=(place / "server.txt").open("w"),
        )  # fmt: skip
        assert self._answer() == "ready", (place / "server.txt").read_text()
        idle = place / "idle"
        idle.mkdir()
        self.least = 0
        self.usual: set[str] = set()  # warnings of unharmed runs
        self.least = self.run(Case("idle", ()), Step(("plan", "--help")), idle).memory

    def make_folder(self, case: Case, name: str) -> Path:
        """Copies what a case needs of the world."""
        folder = self.place / name / "world"
        folder.mkdir(parents=True)
        for need in case.needs:
            source = self.world / need
            (folder / need).parent.mkdir(parents=True, exist_ok=True)
            (shutil.copytree if source.is_dir() else shutil.copy2)(source, folder / need)
        for beside in ("canary", "tmp"):
            (folder.parent / beside).mkdir()
        return folder

    def run(self, case: Case, step: Step, folder: Path) -> Done:
        """Runs one step, killed where it takes too long."""
        with ExitStack() as stack:
            if case.locked:
                stack.enter_context(held(folder / case.locked))
            for pattern, status in step.faults:
                stack.enter_context(self.hub.failing(pattern, status))
            self.hub.unlocked = []
            self.hub.lock_file = folder / f"{step.output}.state" / "lock" if step.command[:1] == ("prune",) else None
            start = time.monotonic()
            processes = [self._start(case, step, folder, rank) for rank in range(1 + len(step.others))]
            ended: list[tuple[int, int]] = []
            for process in reversed(processes):  # as a launcher does: where one fails, the others are ended
                failed = any(code for code, _ in ended)
                ended.append(self._wait(process, min(LIMIT - time.monotonic() + start, GRACE if failed else LIMIT)))
        logs = [self._logs(folder, rank) for rank in range(len(processes))]
        return Done(
            folder,
            next((code for code, _ in ended if code), 0),
            "".join(out.read_text(errors="replace") for out, _ in logs),
            "".join(err.read_text(errors="replace") for _, err in logs),
            time.monotonic() - start,
            max(memory for _, memory in ended) - self.least,
            self.hub.published(),
            tuple(self.hub.unlocked),
        )

    def close(self) -> None:
        """Ends the server and the Hub."""
        assert self.server.stdin
        self.server.stdin.close()
        self.server.wait()
        self.hub.close()

    def _start(self, case: Case, step: Step, folder: Path, rank: int) -> int:
        out, err = self._logs(folder, rank)
        launch = {}
        if step.others:
            size = str(1 + len(step.others))
            self.port = free_port() if rank == 0 else self.port
            launch = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": size}
            launch |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(self.port)}
        given = {name: value.replace("{folder}", str(folder)) for name, value in step.environment.items()}
        if not case.slow:
            given = {"MABPRUNE_PROGRESS": "off", **given}  # lines whose number depends on how busy the machine is
        usual = {"HOME": str(folder / "home"), "TMPDIR": str(folder.parent / "tmp")}
        words = step.others[rank - 1] if rank else step.command
        self._ask(
            command=[word.replace("{folder}", str(folder)) for word in words],
            program=step.program,
            folder=str(folder),
            stdout=str(out),
            stderr=str(err),
            environment=usual | launch | given,
            umask=case.umask,
            plain_user=case.plain_user,
            mounts=[(s and str(folder / s), str(folder / target), options) for s, target, options in case.mounts],
            figures=case.figures,
            memory=MEMORY,
            slow=case.slow,
        )
        return int(self._answer())

    def _wait(self, process: int, seconds: float) -> tuple[int, int]:
        timer = threading.Timer(max(seconds, 0.1), kill, [process])
        timer.start()
        self._ask(wait=process)
        code, memory = json.loads(self._answer())
        timer.cancel()
        return code, memory * 1024

    def _logs(self, folder: Path, rank: int) -> tuple[Path, Path]:
        return folder.parent / f"out{rank}.txt", folder.parent / f"err{rank}.txt"

    def _ask(self, **question: Any) -> None:
        assert self.server.stdin
        self.server.stdin.write(json.dumps(question) + "\n")
        self.server.stdin.flush()

    def _answer(self) -> str:
        assert self.server.stdout
        return self.server.stdout.readline().strip()


def kill(process: int) -> None:
    """Ends a child with all that it has started."""
    with suppress(ProcessLookupError):
        os.killpg(process, signal.SIGKILL)


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Holds a lock as another run does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
