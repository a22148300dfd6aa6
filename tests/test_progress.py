"""What is shown of work that takes long: on a terminal (a real one, of the system), in a log, and nowhere."""

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from hf_mabprune import progress
from hf_mabprune.cli.commands import main
from hf_mabprune.progress import EVERY, FIRST, STAGES, over, stage
from tests.heard import HEARD
from tests.problems import settings_for, write_splits
from tests.watched import Watched

ESCAPE = re.compile(r"\x1b\[(?P<codes>[0-9;?]*)(?P<command>[A-Za-z])")
UNASKED = ("vocabulary", "latency table", "certification")  # stages that the run of these tests has no need of
MODULE = [sys.executable, "-m", "hf_mabprune"]


@pytest.fixture(autouse=True, scope="module")
def spoken() -> Iterator[None]:
    """Other tests are silent, with all that they start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(progress.SWITCH, raising=False)
        yield


def screen(written: str, width: int = 120) -> list[str]:
    """The lines that are left on a terminal, of a width that nothing reaches, once all was written to it."""
    lines, row, column, at = [""], 0, 0, 0
    while at < len(written):
        escape = ESCAPE.match(written, at)
        at = escape.end() if escape else at + 1
        character = written[at - 1]
        if escape and escape["command"] == "A":
            row -= int(escape["codes"] or 1)
        elif escape and escape["command"] == "K":
            lines[row] = "" if escape["codes"] == "2" else lines[row][:column]
        elif character == "\r":
            column = 0
        elif character == "\n":
            row += 1
            lines += [""] * (row == len(lines))
        elif not escape:
            lines[row] = f"{lines[row]:<{column}}"[:column] + character + lines[row][column + 1 :]
            column += 1
    return [line for line in lines if line.strip()]


def in_terminal(command: list[str], width: int = 400, **environment: str) -> tuple[int, str]:
    """Runs a command with a terminal for all its streams; its exit code, and what it wrote."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, width, 0, 0))
    started = subprocess.Popen(
        command, stdin=slave, stdout=slave, stderr=slave, env={**os.environ, "TERM": "xterm", **environment}
    )
    os.close(slave)
    written = b"".join(_read(master))
    os.close(master)
    return started.wait(), written.decode()


def _read(master: int) -> Iterator[bytes]:
    while True:
        try:
            part = os.read(master, 65536)
        except OSError:  # nobody has the other end any more
            return
        if not part:
            return
        yield part


def script(body: str) -> list[str]:
    """A program of its own; it takes the module alone, for the package brings torch."""
    place = str(Path(progress.__file__).parent)
    start = f"import os, signal, sys\nsys.path.insert(0, {place!r})\nfrom progress import over, stage\n"
    return [sys.executable, "-c", start + body]


def test_a_short_stage_says_nothing_in_a_log(shown: Watched, capsys: pytest.CaptureFixture[str]) -> None:
    with stage("refit"):
        shown.wait(FIRST - 1)
    with stage("saving"):
        shown.wait(FIRST - 1)
    assert capsys.readouterr() == ("", "")


def test_a_long_stage_says_so_after_ten_seconds_and_then_every_thirty(
    shown: Watched, capsys: pytest.CaptureFixture[str]
) -> None:
    with stage("statistics"):
        for number in over(range(40), "gradients"):
            shown.wait(2)
            assert number < 40
    said = capsys.readouterr()
    assert said.out == "", "results alone go there"
    assert [line.partition(" batches, ")[0] for line in said.err.splitlines()] == [
        "statistics, 0:10 so far > gradients, 4/40",
        "statistics, 0:40 so far > gradients, 19/40",
        "statistics, 1:10 so far > gradients, 34/40",
    ]
    assert said.err.splitlines()[0].endswith(", 0.4/s, 1:30 left")


def test_stages_that_are_short_each_are_not_silent_together(
    shown: Watched, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(8):
        with stage("refit"):
            shown.wait(FIRST - 1)
    assert len(capsys.readouterr().err.splitlines()) == 8 * (FIRST - 1) // EVERY


def test_a_program_that_seldom_calls_is_left_in_peace(shown: Watched, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(5):
        with stage("refit"):
            shown.wait(2)
        shown.time.now += 3600
    assert capsys.readouterr().err == ""


def test_a_stage_says_its_count_and_what_else_there_is_to_say(
    shown: Watched, capsys: pytest.CaptureFixture[str]
) -> None:
    with stage("search", 400, "pulls", done=100) as work:
        shown.wait(5)
        work.count(200, note="round 1/2")
        shown.wait(5)
    assert capsys.readouterr().err == "search: round 1/2, 200/400 pulls, 10/s, 0:20 left\n"


def test_a_loop_alone_is_not_shown(shown: Watched, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in over([1, 2], "gradients"):
        shown.wait(2 * EVERY)
    assert capsys.readouterr().err == "" and not shown.opened


def test_items_keep_their_order_and_exceptions_close_what_is_open(shown: Watched) -> None:
    assert list(over("abc", "letters")) == ["a", "b", "c"]
    with stage("refit"):
        assert list(over("abc", "letters")) == ["a", "b", "c"]
        with pytest.raises(KeyError) as held, stage("saving"):  # what was raised holds on to the loop
            for _ in over("abc", "letters"):
                raise KeyError("mistake")
        assert [work.name for work in shown.works] == ["refit"] and held
    assert not shown.works


@pytest.mark.parametrize("environment", [{"RANK": "1"}, {"MABPRUNE_PROGRESS": "off"}])
def test_other_processes_and_who_is_asked_to_be_silent(
    shown: Watched, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with stage("statistics"):
        for _ in over(range(10), "gradients"):
            shown.wait(FIRST)
    assert capsys.readouterr().err == "" and not shown.opened


@pytest.mark.parametrize("stream", [None, "closed"])
def test_closed_streams_do_not_matter(shown: Watched, monkeypatch: pytest.MonkeyPatch, stream: str | None) -> None:
    with open(os.devnull, "w") as closed:
        pass
    monkeypatch.setattr(sys, "stderr", closed if stream else None)
    with stage("statistics"):
        shown.wait(2 * EVERY)
    assert not shown.works


WORK = """
with stage("statistics"):
    for number in over(range(6), "gradients"):
        print("line", number)
        print("note", number, file=sys.stderr)
print("result")
"""


def test_a_terminal_shows_bars_and_keeps_lines() -> None:
    code, written = in_terminal(script(WORK))
    assert code == 0
    assert "statistics" in written
    lines = [f"{word} {number}" for number in range(6) for word in ("line", "note")]
    assert screen(written) == [*lines, "result"]


def test_results_go_where_they_are_sent_though_there_is_a_terminal(tmp_path: Path) -> None:
    code, written = in_terminal(["sh", "-c", '"$@" > "$0"', str(tmp_path / "out"), *script(WORK)])
    assert code == 0
    assert (tmp_path / "out").read_text().splitlines() == [*(f"line {number}" for number in range(6)), "result"]
    assert screen(written) == [f"note {number}" for number in range(6)]
    assert "statistics" in written


INTERRUPTED = "os.kill(os.getpid(), signal.SIGINT)"


@pytest.mark.parametrize("ending", ["raise ValueError('mistake')", *([INTERRUPTED] if signal.SIGINT in HEARD else [])])
def test_what_ends_a_stage_leaves_the_terminal_clean(ending: str) -> None:
    body = f"""
try:
    with stage("statistics"):
        for number in over(range(6), "gradients"):
            print("line", number)
            {ending}
            signal.pause()
except BaseException as error:
    print("ended by", type(error).__name__)
"""
    code, written = in_terminal(script(body))
    assert code == 0
    name = "ValueError" if "raise" in ending else "KeyboardInterrupt"
    assert screen(written) == ["line 0", f"ended by {name}"]
    assert "\x1b[?25l" not in written, "a cursor that is never hidden needs nobody to bring it back"


@pytest.mark.parametrize("environment", [{"TERM": "dumb"}, {"MABPRUNE_PROGRESS": "off"}])
def test_terminals_that_cannot_or_shall_not_show_bars(environment: dict[str, str]) -> None:
    code, written = in_terminal(script(WORK), **environment)
    assert code == 0
    assert "\x1b" not in written and "statistics" not in written


def test_a_narrow_terminal_cuts_what_is_done_and_not_the_time_that_is_left() -> None:
    body = """
import time
with stage("benchmark", 400, "cells") as work:
    work.count(1, note="of a long name " * 30)
    time.sleep(1)
"""
    _, written = in_terminal(script(body), width=80)
    lines = [line for line in re.split(r"[\r\n]+", ESCAPE.sub("", written)) if "long name" in line]
    assert lines and all(re.search(r"\.\.\. .* (left|so far)\s*$", line) and len(line) <= 80 for line in lines), lines


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Settings of a small run that passes through all stages."""
    folder = tmp_path_factory.mktemp("run")
    changes = {
        "search": {"rule": "refit", "rounds": None},
        "compensation": "least_squares",
        "recovery": {"max_steps": 2},
        "output": {"dir": str(folder / "out"), "random_seeds": 1, "criteria": ["magnitude"], "overwrite": True},
    }
    (folder / "run.yaml").write_text(settings_for(folder, write_splits(folder), "bert", **changes).to_yaml())
    return str(folder / "run.yaml")


@pytest.fixture(scope="module")
def watched(config: str) -> str:
    """What a terminal got of a run."""
    code, written = in_terminal([*MODULE, "prune", "--config", config])
    assert code == 0, written
    return written


@pytest.mark.whole
def test_a_run_shows_its_stages_in_their_order(watched: str) -> None:
    lines = [line.strip() for line in re.split(r"[\r\n]+", ESCAPE.sub("", watched))]
    expected = [name for name in STAGES[: STAGES.index("upload")] if name not in UNASKED]
    first = [next((at for at, line in enumerate(lines) if line.startswith(name)), -1) for name in expected]
    assert -1 not in first and first == sorted(first), str(dict(zip(expected, first, strict=True)))
    left = screen(watched)
    assert left[0].startswith("bert | ") and left[-1].startswith("load it: "), left
    (done,) = (line for line in left if line.startswith("round 1/1"))
    assert "on one calibration batch, before the refit and the training: KL" in done
    assert "refitted, on held-out calibration data: KL" in done


@pytest.mark.whole
def test_a_run_that_nobody_watches_is_the_same(config: str, watched: str) -> None:
    weights = Path(config).parent / "out" / "model.safetensors"
    before = weights.read_bytes()
    done = subprocess.run([*MODULE, "prune", "--config", config], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout + done.stderr and "\r" not in done.stdout + done.stderr
    left = screen(watched)
    assert not [line for line in left if line.startswith(STAGES)], "the bars are gone"
    assert (left[0], left[-1]) == (done.stdout.splitlines()[0], done.stdout.splitlines()[-1]), "and nothing else is"
    assert weights.read_bytes() == before


@pytest.mark.whole
def test_commands_show_what_they_measure(config: str, shown: Watched, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(Path(config).parent / "commands")
    assert main(["prune", "--config", config, "--output.dir", out]) == 0
    loops = {"encoding", "curvature of the outputs", "costs of removals", "effects of all arms", "pulls on a batch"}
    assert {*loops, "refits", "guard", "inputs of projections", "forward passes", "latency"} <= set(shown.names())
    trained = shown.last("recovery")
    assert trained.done == trained.total == 2 and re.match(r"epoch [\d.]+, loss \d", trained.note)
    for command, names in (
        (["plan", "--config", config], {"reading data", "loading model", "layout", "trial passes"}),
        (["verify", out], {"verification", "checksums", "weights"}),
        (["evaluate", out], {"reading data", "loading model", "evaluation", "forward passes", "latency"}),
        (["cut", out, "--target.neurons", "0.25", "--output.dir", f"{out}-25"], {"refit", "evaluation", "saving"}),
    ):
        shown.opened.clear()
        assert main(command) == 0, capsys.readouterr().err
        assert names <= set(shown.names()), command
    assert not shown.works
