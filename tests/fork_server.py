"""Runs of the command line that start in milliseconds: a server imports everything once and forks for each run.

Reads one JSON object a line: {"arguments": [...], "log": path, "file_limit": bytes or null} starts a run and answers
with its process id; {"wait": pid} answers with its exit status, negative for a signal.
"""

import json
import os
import resource
import signal
import sys

from hf_mabprune.checkpoints.modeling_pruned import auto_classes
from hf_mabprune.cli.commands import main
from tests.tiny_models import tiny_config


def run(arguments: list[str], log: str, file_limit: int | None) -> None:
    """In the child: the command line, with its output in a file."""
    descriptor = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
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


def serve() -> None:
    auto_classes(type(tiny_config("bert")))  # imports the model
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
