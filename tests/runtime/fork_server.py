"""Runs of the command line that start in milliseconds: a server imports everything once and forks for each run.

Reads one JSON object a line: {"arguments": [...], "log": path, "file_limit": bytes or null, "environment": {}} starts
a run and answers with its process id; {"wait": pid} answers with its exit status, negative for a signal.
"""

import json
import os
import resource
import signal
import sys
from contextlib import redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory

from accelerate.state import AcceleratorState

from hf_mabprune.cli.commands import main
from tests.problems import settings_for, write_splits


def run(arguments: list[str], log: str, file_limit: int | None, environment: dict[str, str]) -> None:
    """In the child: the command line, with its output in a file."""
    descriptor = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ.update(environment)
    if file_limit is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
    code = 1
    try:
        code = main(arguments)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def warm_up() -> None:
    """A run that needs no gradients, whose threads no child could use: what it imports and caches is there then."""
    with TemporaryDirectory() as name, redirect_stdout(sys.stderr):
        search = {"criterion": "magnitude", "rounds": None}
        settings = settings_for(Path(name), write_splits(Path(name)), "bert", search=search, compensation=None)
        (Path(name) / "run.yaml").write_text(settings.to_yaml())
        assert main(["prune", "--config", f"{name}/run.yaml"]) == 0
    AcceleratorState._reset_state(reset_partial_state=True)  # a child may be one of several processes


def serve() -> None:
    warm_up()
    print("ready", flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        if "wait" in asked:
            print(os.waitstatus_to_exitcode(os.waitpid(asked["wait"], 0)[1]), flush=True)
            continue
        child = os.fork()
        if child == 0:
            run(**asked)
        print(child, flush=True)


if __name__ == "__main__":
    serve()
