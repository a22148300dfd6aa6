"""The harness of hostile cases notices what it is for: each of its invariants catches a program that breaks it."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest

from tests.hostile.__main__ import KINDS, cases_of
from tests.hostile.case import Case, Step
from tests.hostile.invariants import Verdict, judge, snapshot
from tests.hostile.workers import Worker

pytestmark = pytest.mark.whole
FAULTS = {
    "traceback: KeyError": "raise KeyError('x')",
    "refuses without a line": "sys.exit(2)",
    "noise: what": "sys.stderr.write('what\\nmabprune: no\\n'); sys.exit(2)",
    "internals": "sys.stderr.write('mabprune: <object object at 0x7f00>\\n'); sys.exit(2)",
    "lost: thesis.txt": "os.remove('thesis.txt')",
    "changed (type or content): thesis.txt": "open('thesis.txt', 'w').close()",
    "changed (mode): thesis.txt": "os.chmod('thesis.txt', 0o600)",
    "left behind: litter": "open('litter', 'w').close()",
    "code was run: trace": "open('../canary/trace', 'w').close()",
    "secret shown": "print('S3cret')",
    "secret written: out/x": "os.mkdir('out'); open('out/x', 'w').write('S3cret')",
    "report.json is no strict JSON": "os.mkdir('out'); open('out/report.json', 'w').write('[NaN]')",
    "no result with exit 0": "pass",
    "dies of signal 15": "import signal; os.kill(os.getpid(), signal.SIGTERM)",
}


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    place = tmp_path_factory.mktemp("hostile")
    (place / "world").mkdir()
    (place / "world" / "thesis.txt").write_text("years of work")
    worker = Worker(place / "worker", place / "world")
    yield worker
    worker.close()


def verdict(worker: Worker, program: str, name: str) -> Verdict:
    """What is said of a program."""
    step = Step(program=f"import os, sys\n{program}")
    case = Case("planted", (step,), needs=("thesis.txt",), secrets=("S3cret",))
    folder = worker.make_folder(case, name)
    before = snapshot(folder)
    return judge(case, step, worker.run(case, step, folder), before, {})


def test_every_planted_fault_is_caught(worker: Worker) -> None:
    for number, (fault, program) in enumerate(FAULTS.items()):
        faults = verdict(worker, program, f"planted{number}").faults
        assert any(fault in each for each in faults), (fault, faults)


def test_a_refusal_in_one_line_is_none(worker: Worker) -> None:
    found = verdict(worker, "sys.stderr.write('mabprune: no such model; choose another\\n'); sys.exit(2)", "refusal")
    assert found == Verdict("refused", ())


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_kind_has_eighty_cases_that_a_seed_repeats(kind: int) -> None:
    names = [case.name for case in islice(cases_of(kind, 1), 80)]
    assert names == [case.name for case in islice(cases_of(kind, 1), 80)]
    assert names != [case.name for case in islice(cases_of(kind, 2), 80)]


def test_a_case_starts_from_a_copy(worker: Worker, tmp_path: Path) -> None:
    verdict(worker, "open('thesis.txt', 'w').close()", "copy")
    assert (worker.world / "thesis.txt").read_text() == "years of work"
