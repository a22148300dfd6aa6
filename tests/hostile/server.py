"""Runs hostile cases in processes that start in milliseconds: everything is imported once, a child is forked for each.

Reads one JSON object a line: the fields of `Asked` start a child and are answered with its process id; {"wait": pid}
is answered with its exit status, negative for a signal, and the most memory that it had, in KiB.
"""

import ctypes
import fcntl
import json
import os
import pty
import resource
import struct
import sys
import tempfile
import termios
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from hf_mabprune.artifacts import plots
from hf_mabprune.cli.commands import main
from tests.hostile.case import SILENT
from tests.runtime.fork_server import warm_up

CLONE_NEWNS, MS_PRIVATE, MS_BIND, MS_REC, MS_REMOUNT, MS_RDONLY = 0x20000, 0x40000, 0x1000, 0x4000, 0x20, 1
OVER_FILES = (0, 1, 2, 3)  # CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER
libc = ctypes.CDLL(None, use_errno=True)


@dataclass
class Asked:
    """A child that is asked for; see `case.Case` and `case.Step`."""

    command: list[str]
    program: str
    folder: str
    stdout: str
    stderr: str
    environment: dict[str, str]
    umask: int
    plain_user: bool
    mounts: list[tuple[str, str, str]]
    figures: bool
    memory: int
    slow: float


def serve() -> None:
    """Answers until its input ends."""
    warm_up()
    print("ready", flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        if "wait" in asked:
            _, status, used = os.wait4(asked["wait"], 0)
            print(json.dumps([os.waitstatus_to_exitcode(status), used.ru_maxrss]), flush=True)
            continue
        child = os.fork()
        if child == 0:
            run(Asked(**asked))
        print(child, flush=True)


def run(asked: Asked) -> None:
    """In the child: one command or program, with its output in files, as an interpreter of its own would run it."""
    os.setsid()
    for path, descriptor in ((os.devnull, 0), (asked.stdout, 1), (asked.stderr, 2)):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644), descriptor)
    if asked.slow:
        watch()
    code: Any = 1
    try:
        enter(asked)
        code = execute(asked)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code or 0)


def watch() -> None:
    """Goes on in a child that writes to a terminal, and copies what comes, with the longest silence in seconds."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 160, 0, 0))
    child = os.fork()
    if child == 0:
        for descriptor in (1, 2):
            os.dup2(slave, descriptor)
        return
    os.close(slave)
    last, longest = time.monotonic(), 0.0
    with suppress(OSError):  # nobody has the other end any more
        while part := os.read(master, 65536):
            os.write(1, part)
            longest, last = max(longest, time.monotonic() - last), time.monotonic()
    os.write(1, f"\n{SILENT} {longest:.1f}\n".encode())
    os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) % 256)


def slow_down(seconds: float) -> None:
    """Lets every layer take so long."""

    def wait(module: nn.Module, arguments: Any) -> None:
        if type(module).__name__.endswith("Layer"):
            time.sleep(seconds)

    nn.modules.module.register_module_forward_pre_hook(wait)


def enter(asked: Asked) -> None:
    """Takes the case's place, environment and rights."""
    for source, target, options in asked.mounts:
        mount(source, target, options)
    os.chdir(asked.folder)
    os.umask(asked.umask)
    os.environ.update(asked.environment)
    tempfile.tempdir = None
    if not asked.figures:
        plots.save_figures = lambda *_: []
    if asked.memory:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + asked.memory,) * 2)
    if asked.slow:
        os.environ["TERM"] = "xterm"
        slow_down(asked.slow)
    if asked.plain_user:
        give_up_rights()


def execute(asked: Asked) -> int:
    """Runs the command or the program; gives the exit code."""
    if not asked.program:
        return main(asked.command)
    exec(compile(asked.program, "program.py", "exec"), {"__name__": "__main__"})
    return 0


def mount(source: str, target: str, options: str) -> None:
    """Mounts something where only this process sees it."""
    checked(libc.unshare(CLONE_NEWNS))
    checked(libc.mount(None, b"/", None, MS_REC | MS_PRIVATE, None))
    if not source:
        checked(libc.mount(b"none", target.encode(), b"tmpfs", 0, options.encode()))
        return
    checked(libc.mount(source.encode(), target.encode(), None, MS_BIND, None))
    if options == "ro":
        checked(libc.mount(None, target.encode(), None, MS_BIND | MS_REMOUNT | MS_RDONLY, None))


def give_up_rights() -> None:
    """Lets file modes bind root as they bind anybody."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    sets = (ctypes.c_uint32 * 6)()
    checked(libc.capget(header, sets))
    mask = sum(1 << number for number in OVER_FILES)
    for place in (0, 1):  # effective, permitted
        sets[place] &= ~mask
    checked(libc.capset(header, sets))


def checked(status: int) -> None:
    """Raises OSError where a system call failed."""
    if status:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


if __name__ == "__main__":
    serve()
