"""Tries hostile folders, files and settings on the command line: `python -m tests.hostile [--seed N] [--kind K ...]`.

Each kind of fault is a file of this folder with a generator `cases(rng)`; signals and kills are tried elsewhere.
"""

import argparse
import importlib
import os
import re
import shlex
import shutil
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from queue import Empty, Queue
from random import Random, SystemRandom
from typing import NamedTuple

from tests.hostile.case import Case
from tests.hostile.invariants import judge, snapshot
from tests.hostile.workers import Worker

HERE = Path(__file__).parent
KINDS = {int(file.stem.split("_")[1]): file.stem for file in sorted(HERE.glob("kind_*.py"))}
COLUMNS = ("refused", "equal", "warned", "other", "FAILED")


class Tried(NamedTuple):
    """What came of a case."""

    kind: int
    number: int
    name: str
    outcome: str
    faults: tuple[str, ...]
    commands: tuple[str, ...]
    said: str
    seconds: float


def main() -> int:
    """Runs the cases and prints the table; 1 where any failed."""
    parser = argparse.ArgumentParser("python -m tests.hostile", description=__doc__)
    parser.add_argument("--seed", type=int, default=None, help="of the cases; drawn and printed where left out")
    parser.add_argument("--kind", type=int, nargs="+", default=sorted(KINDS), choices=sorted(KINDS))
    parser.add_argument("--cases", type=int, default=80, help="of each kind")
    parser.add_argument("--case", nargs="+", default=[], metavar="KIND-NUMBER", help="only these")
    parser.add_argument("--say", action="store_true", help="print the last line of every case")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--keep", type=Path, help="folder, not there yet, that the folders of failed cases stay in")
    asked = parser.parse_args()
    seed = asked.seed if asked.seed is not None else SystemRandom().randrange(10**6)
    chosen = [tuple(map(int, case.split("-"))) for case in asked.case]
    wanted = chosen or [(kind, number) for number in range(asked.cases) for kind in asked.kind]
    print(f"seed {seed}: {len(wanted)} cases", flush=True)
    start = time.monotonic()
    place = asked.keep.absolute() if asked.keep else Path(tempfile.mkdtemp(prefix="hostile-"))
    try:
        tried = try_all(seed, wanted, min(asked.jobs, len(wanted)), place, bool(asked.keep or chosen))
    finally:
        if not asked.keep and not chosen:
            shutil.rmtree(place, ignore_errors=True)
    tell(seed, tried, verbose=bool(chosen))
    if asked.say:
        for case in tried:
            print(f"{case.kind:02}-{case.number:03} {case.outcome:8} {case.name:.70} | {last_line(case.said):.160}")
    print(f"{len(tried)} cases in {(time.monotonic() - start) / 60:.1f} minutes; seed {seed}")
    if chosen:
        print(f"the folders are in {place}")
    return int(any(case.faults for case in tried))


def cases_of(kind: int, seed: int) -> Iterator[Case]:
    """Gives the cases of a kind, as many as are asked for; the same for the same seed."""
    module = importlib.import_module(f"tests.hostile.{KINDS[kind]}")
    return module.cases(Random(f"{seed} {kind}"))  # type: ignore[no-any-return]


def try_all(seed: int, wanted: list[tuple[int, int]], jobs: int, place: Path, keep: bool) -> list[Tried]:
    """Tries all cases on several workers."""
    from tests.hostile.prepared import make_world  # after the environment is set

    world, tried, errors = place / "made", [], []
    world.mkdir(parents=True)
    first = Worker(place / "worker0", world)
    references = make_world(first, world)
    print(f"world made: {', '.join(name for name, found in references.items() if found)}", flush=True)
    queue: Queue[tuple[int, int, Case]] = Queue()
    last = {kind: max(number for each, number in wanted if each == kind) for kind, _ in wanted}
    made = {kind: list(islice(cases_of(kind, seed), number + 1)) for kind, number in last.items()}
    for kind, number in wanted:
        queue.put((kind, number, made[kind][number]))

    def work(number: int) -> None:
        worker = first if number == 0 else Worker(place / f"worker{number}", world)
        try:
            while True:
                tried.append(try_one(worker, *queue.get_nowait(), references, keep))
                if len(tried) % 100 == 0:
                    print(f"{len(tried)} tried, {sum(bool(each.faults) for each in tried)} failed", flush=True)
        except Empty:
            pass
        except BaseException as error:
            errors.append(error)
            raise
        finally:
            worker.close()

    threads = [threading.Thread(target=work, args=[number]) for number in range(jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return sorted(tried)


def try_one(worker: Worker, kind: int, number: int, case: Case, references: dict, keep: bool) -> Tried:
    """Makes the folder, harms it, runs the steps and judges each."""
    name = f"{kind:02}-{number:03}"
    folder = worker.make_folder(case, name)
    worker.hub.forget()
    case.harm(folder)
    if case.locked:
        (folder / case.locked).parent.mkdir(parents=True, exist_ok=True)
        (folder / case.locked).touch()
    outcome, faults, said, start = "", [], "", time.monotonic()
    for place, step in enumerate(case.steps, 1):
        before = snapshot(folder)
        done = worker.run(case, step, folder)
        verdict = judge(case, step, done, before, references)
        outcome = verdict.outcome
        where = f"step {place}: " if len(case.steps) > 1 else ""
        faults += [f"{where}{fault}" for fault in verdict.faults]
        said += done.text
        if verdict.faults:
            break
    if not (keep and faults):
        make_removable(folder.parent)
        shutil.rmtree(folder.parent, ignore_errors=True)
    commands = tuple(shlex.join(["mabprune", *step.command]) if step.command else "a program" for step in case.steps)
    return Tried(kind, number, case.name, outcome, tuple(faults), commands, said, time.monotonic() - start)


def make_removable(folder: Path) -> None:
    """Gives back the rights that a case has taken."""
    for place, folders, _ in os.walk(folder):
        for name in folders:
            path = Path(place, name)
            if not path.is_symlink():
                path.chmod(0o755)


def tell(seed: int, tried: list[Tried], verbose: bool) -> None:
    """Prints what failed, alike failures together, and the table."""
    groups: dict[tuple[int, str], list[Tried]] = defaultdict(list)
    for case in tried:
        for fault in case.faults:
            groups[case.kind, alike(fault)].append(case)
    for (kind, fault), failed in sorted(groups.items(), key=lambda group: (group[0][0], -len(group[1]))):
        example = failed[0]
        print(f"\nkind {kind}, {len(failed)} x: {fault}\n  e.g. {example.name}: {' && '.join(example.commands)[:300]}")
        print(f"  said: {last_line(example.said):.300}")
        print(f"  python -m tests.hostile --seed {seed} --case {example.kind:02}-{example.number:03}")
        if len(failed) > 1:
            print(f"  also {' '.join(f'{case.kind:02}-{case.number:03}' for case in failed[1:16])}")
    if verbose:
        for case in tried:
            print(f"\n{case.kind:02}-{case.number:03} {case.name}\n{case.commands}\n{case.said}\n-> {case.outcome}")
    print(f"\n{'kind':36} {'cases':>7} " + " ".join(f"{name:>9}" for name in COLUMNS) + f" {'s a case':>9}")
    for kind in sorted({case.kind for case in tried}):
        of_kind = [case for case in tried if case.kind == kind]
        counts = [sum(case.outcome == name and not case.faults for case in of_kind) for name in COLUMNS[:-1]]
        counts.append(sum(bool(case.faults) for case in of_kind))
        seconds = sum(case.seconds for case in of_kind) / len(of_kind)
        shown = " ".join(f"{count:>9}" for count in counts)
        print(f"{KINDS[kind].removeprefix('kind_').replace('_', ' '):36} {len(of_kind):>7} {shown} {seconds:>9.1f}")


def last_line(said: str) -> str:
    """Gives the last line that is not blank."""
    return next((line for line in reversed(said.splitlines()) if line.strip()), "nothing")


def alike(fault: str) -> str:
    """Gives a fault without the numbers and paths in which alike ones differ."""
    return re.sub(r"\d+", "N", re.sub(r"'[^']{0,200}'|/\S+", "…", fault))[:150]


if __name__ == "__main__":
    sys.exit(main())
