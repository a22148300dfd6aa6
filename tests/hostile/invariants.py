"""What must hold after every command, whatever the folder holds: the verdict on a case."""

import hashlib
import json
import math
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from safetensors import SafetensorError, safe_open

from tests.hostile.case import Case, Done, Step

LONG = 1500  # letters of an error line
WARNING = "mabprune: warning: "
HUGE = 1.5 * 2**30  # bytes
INTERNALS = re.compile(
    r"object at 0x|<class '|site-packages|File \"|\.(py|cpp|rs|h):\d|c10::|at::|std::|\bTraceback\b"
    r"|\[Errno \d+\]|has no len\(\)|has no attribute|not subscriptable|unhashable|NoneType|os\.PathLike"
    r"|unexpected keyword|not supported between|^mabprune: '[\w-]+' codec can't"
    r"|DatasetGenerationError|<function|<bound method|PydanticUndefined"
)
USAGE = re.compile(r"usage: .*?\n(mabprune[^:\n]*): error: [^\n]*\n", re.DOTALL)
Snapshot = dict[str, tuple[Any, ...]]


@dataclass(frozen=True)
class Verdict:
    """What came of a step.

    Attributes:
        outcome: "refused"; or passed with the result of the unharmed run, "equal", with another one and a warning,
            "warned", or with one that is for the checks of the case, "other".
        faults: What is wrong, each in one line.
    """

    outcome: str
    faults: tuple[str, ...]


def snapshot(folder: Path) -> Snapshot:
    """Gives everything below a folder: path -> type, mode, and content or target."""
    found: Snapshot = {}
    for place, folders, files in os.walk(folder):
        for name in [*folders, *files]:
            path = os.path.join(place, name)
            there = os.lstat(path)
            kind = stat.S_IFMT(there.st_mode)
            content: Any = None
            if kind == stat.S_IFREG:
                content = hashlib.sha256(Path(path).read_bytes()).hexdigest()
            elif kind == stat.S_IFLNK:
                content = os.readlink(path)
            elif kind in (stat.S_IFCHR, stat.S_IFBLK):
                content = there.st_rdev
            found[os.path.relpath(path, folder)] = (kind, stat.S_IMODE(there.st_mode), content)
    return found


def judge(case: Case, step: Step, done: Done, before: Snapshot, references: dict[str, Any]) -> Verdict:
    """Gives the verdict on one step."""
    after = snapshot(done.folder)
    faults = [*spoken(case, done), *lost(case, done, before, after), *executed(done), *shown_secrets(case, done)]
    warned = bool(set(warnings_in(done.text)) - references.get("warnings", set()))
    outcome = "refused"
    if done.code == 0:
        result = figures_of(done) if step.reference.startswith("evaluate") else result_of(done.folder / step.output)
        same = result is not None and result == references.get(step.reference)
        outcome = "equal" if same else "warned" if warned else "other"
        if step.expects == "refused":
            faults.append("passes what must be refused" + (", with a warning" if warned else ", without a word"))
        elif step.expects == "equal" and not same:
            faults.append("another result with exit 0" if result is not None else "no result with exit 0")
        elif step.expects == "warned" and not same and not warned:
            faults.append("another result with exit 0, and no warning")
        faults += untidy_numbers(done.folder, before, after)
    elif step.expects == "passes":
        faults.append("refuses what must pass")
    faults += [fault for check in step.checks if (fault := check(done))]
    return Verdict(outcome, tuple(faults))


def warnings_in(text: str) -> list[str]:
    """Gives the warnings of an output, without their numbers."""
    lines = re.findall(r"^(?:mabprune: )?warning: (.*)$", text, re.MULTILINE)
    return [re.sub(r"[\d.]+", "N", line) for line in lines]


def spoken(case: Case, done: Done) -> Iterator[str]:
    """Looks for tracebacks, noise, hangs and messages that are not one line."""
    if "Traceback (most recent call last)" in done.text:
        kinds = re.findall(
            r"^(\w[\w.]*(?:Error|Exception|Interrupt|Warning|Expired|Timeout|\w+)):? ?(.*)$", done.text, re.M
        )
        last = " ".join(kinds[-1]) if kinds else ""
        yield f"traceback: {last[:160]}"
        return
    if done.code == -9:
        yield "hangs: killed after 60 s" if done.seconds > 50 else "killed, perhaps for memory"
        return
    if done.memory > HUGE:
        yield f"takes {done.memory / 2**30:.1f} GB"
    if done.code < 0:
        yield f"dies of signal {-done.code}"
    verified = any("verify" in step.command[:1] for step in case.steps)
    if done.code not in ((0, 1, 2) if verified else (0, 2)) and done.code < 128:
        yield f"exit code {done.code}"
    errors = USAGE.sub(r"\1: error\n", done.stderr)
    lines = [line for line in errors.split("\n") if line]
    said = [line for line in lines if line.startswith("mabprune") and not line.startswith(WARNING)]
    noise = [line for line in lines if not line.startswith("mabprune")]
    if noise:
        yield f"noise: {noise[0][:160]}"
    if done.code > 0 and not said and not (verified and "FAILED" in done.text):
        yield "refuses without a line"
    processes = max([1, *(1 + len(step.others) for step in case.steps)])
    if len(said) > processes and done.code >= 0:
        yield f"{len(said)} lines of errors: {said[0][:100]} | {said[-1][:100]}"
    for line in said:
        if len(line) > LONG:
            yield f"a line of {len(line)} letters: {line[:100]}"
        if found := INTERNALS.search(line):
            yield f"internals ({found[0]}): {line[:200]}"
        if re.search(r"[\x00-\x08\x0b-\x1f\x7f]", line):
            yield f"control characters in the line: {line[:100]!r}"
    for word in case.forbidden:
        if word in done.text and not any(INTERNALS.search(line) for line in said):
            yield f"says {word!r}: {next((line for line in done.text.splitlines() if word in line), '')[:160]}"
    if case.early and done.code > 0 and "round 1/" in done.stdout:
        yield f"finds out after the search: {said[-1][:160] if said else ''}"


def lost(case: Case, done: Done, before: Snapshot, after: Snapshot) -> Iterator[str]:
    """Compares what is not the run's own before and after; after a refusal, what is its own, too."""
    for path, was in sorted(before.items()):
        if path not in after:
            if done.code != 0 or not is_own(case, path):
                yield f"lost: {path}"
                return
        elif was != after[path] and (not is_own(case, path) or (done.code != 0 and was[0] != stat.S_IFDIR)):
            if is_own(case, path) and ".state" in path:
                continue
            change = "mode" if was[0] == after[path][0] and was[2] == after[path][2] else "type or content"
            yield f"changed ({change}): {path}"
            return
    saved = any("search_state" in path and ".state" in path for path in after)
    for path in sorted(after.keys() - before.keys()):
        if path.endswith(".state/lock") or any(path.startswith(f"{folder}/") for folder in case.adds):
            continue
        if not is_own(case, path) or (done.code != 0 and not saved and not case.leaves):
            yield f"left behind: {re.sub('mabprune-[a-z0-9_]{8}', 'mabprune-*', path)}"
            return
    left = [path.name for path in (done.folder.parent / "tmp").iterdir()]
    if left:
        yield f"left behind in the temporary folder: {re.sub('[a-z0-9_]{8}', '*', left[0])}"


def is_own(case: Case, path: str) -> bool:
    """Tells whether a path is one of those that the commands may change, or below one."""
    return any(path == own or path.startswith(f"{own}/") for own in case.own)


def executed(done: Done) -> Iterator[str]:
    """Looks for traces of planted code."""
    for trace in sorted((done.folder.parent / "canary").iterdir()):
        yield f"code was run: {trace.name}"


def shown_secrets(case: Case, done: Done) -> Iterator[str]:
    """Looks for planted secrets in all that was printed, written or published."""
    for secret in case.secrets:
        if secret in done.text:
            line = next((line for line in done.text.splitlines() if secret in line), "")
            yield f"secret shown: {line.replace(secret, '<SECRET>')[:160]}"
        for place, _, files in os.walk(done.folder):
            for name in files:
                path = Path(place, name)
                relative = path.relative_to(done.folder).as_posix()
                if is_own(case, relative) and path.is_file() and secret.encode() in path.read_bytes():
                    yield f"secret written: {relative}"
        for repo, files_of in done.published.items():
            for name, content in files_of.items():
                if secret.encode() in content:
                    yield f"secret published: {repo}/{name}"


def untidy_numbers(folder: Path, before: Snapshot, after: Snapshot) -> Iterator[str]:
    """Looks for reports that are no strict JSON."""
    for path in sorted(path for path in after if path.endswith("report.json") and after[path] != before.get(path)):
        try:
            json.loads((folder / path).read_text(), parse_constant=refuse_constant)
        except ValueError as error:
            yield f"{path} is no strict JSON: {error}"


def refuse_constant(name: str) -> None:
    """Refuses NaN and Infinity."""
    raise ValueError(f"it holds {name}")


def figures_of(done: Done) -> dict[str, Any] | None:
    """Gives what `evaluate --json` printed, without what time has to do with; None where it is no JSON."""
    try:
        figures = json.loads(done.stdout, parse_constant=refuse_constant)
    except ValueError:
        return None
    return {name: value for name, value in figures.items() if name not in ("latency_ms", "checkpoint_bytes")}


def result_of(folder: Path) -> dict[str, Any] | None:
    """Gives selection and weights of a finished run, size by size; None where there is none."""
    tables = sorted(path for path in folder.rglob("arms.parquet") if path.is_file()) if folder.is_dir() else []
    found = {}
    for table in tables:
        root = table.parents[1]
        try:
            arms = pd.read_parquet(table)
            with safe_open(root / "model.safetensors", "np") as weights:
                names = sorted(weights.keys())
            digest = hashlib.sha256((root / "model.safetensors").read_bytes()).hexdigest()
        except (OSError, SafetensorError, ValueError, KeyError):
            return None
        columns = arms[["kept", "order", "pulls", "removed_round", "mean"]].to_numpy().tolist()
        rows = [[None if isinstance(v, float) and math.isnan(v) else v for v in row] for row in columns]
        found[root.relative_to(folder).as_posix()] = {"arms": rows, "tensors": names, "weights": digest}
    return found or None
