"""A saved search that was changed, with a checksum that fits, is refused through the command line, in one line."""

import copy
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hf_mabprune.artifacts.run_folder import SEARCH_STATE
from hf_mabprune.runtime.saved import pack, unpack
from tests.problems import settings_for, write_splits
from tests.runtime.runs import Runs, wait_for

pytestmark = pytest.mark.whole

Change = Callable[[dict[str, Any]], None]


def put(name: str, value: Any) -> Change:
    """Sets an entry by its dotted name; in an array, the first number."""

    def change(state: dict[str, Any]) -> None:
        *parents, last = name.split(".")
        for parent in parents:
            state = state[int(parent) if isinstance(state, list) else parent]
        if isinstance(state[last], np.ndarray) and not isinstance(value, list):
            state[last] = state[last].copy()
            state[last][0] = value
        else:
            state[last] = value

    return change


CHANGES = {  # name -> change, and what is said of it
    "an arm twice": (
        lambda state: state["search"]["order"].__setitem__(0, state["search"]["order"][1]),
        "arms are gone",
    ),
    "an arm too many": (put("search.order", 99), "arms are gone"),
    "pulls without end": (put("search.seen", -(2**40)), "seen must be in"),
    "no pulls": (put("search.pulls", 0), "contradicts itself"),
    "another round": (put("search.rounds.0.number", 3), "its rounds are not"),
    "more rounds": (
        lambda state: state["search"]["rounds"].extend(9 * state["search"]["rounds"]),
        "its rounds are not",
    ),
    "a score": (put("search.scores", np.nan), "scores must be in"),
    "all batches broken": (put("search.broken", list(range(40))), "batches are broken"),
    "arms a forward": (put("search.arms_a_forward", 0), "arms_a_forward must be in"),
    "time before time": (put("search.cost.seconds", -1.0), "seconds must be in"),
    "a word": (put("search.paid_rounds", "one"), "paid_rounds must be a whole number"),
    "the dead": (put("search.policy.alive", False), "arms in question are gone"),
    "phases without end": (put("search.policy.phase", 10**9), "phase is beyond the last one"),
    "another generator": (put("search.policy.rng.bit_generator", "MT19937"), "rng must be the state of"),
    "a state beyond": (put("search.policy.rng.state.state", 2**128), "rng must be"),
    "no policy": (put("search.policy", None), "policy must be a state of its own"),
    "another policy": (lambda state: state["search"]["policy"].pop("due"), "a state of SequentialHalving has"),
    "an earlier search": (lambda state: state["earlier"].append(state["search"]), "earlier must be"),
    "another run": (put("fingerprint", "abc"), "another model, other data or other settings"),
}


@pytest.fixture(scope="module")
def interrupted(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path]:
    """The command of a run that was stopped after its first round, and its saved search."""
    folder = tmp_path_factory.mktemp("interrupted")
    search = {"rounds": 4, "pulls_per_arm": 8, "policy": {"name": "sequential_halving"}}
    (folder / "run.yaml").write_text(settings_for(folder, write_splits(folder), "bert", search=search).to_yaml())
    command = ["prune", "--config", str(folder / "run.yaml"), "--output.dir", str(folder / "out")]
    process = runs.start(*command)
    path = folder / "out.state" / SEARCH_STATE
    wait_for(path, process)
    os.kill(process, signal.SIGKILL)
    runs.wait(process)
    return command, path


@pytest.fixture(scope="module")
def saved(interrupted: tuple[list[str], Path]) -> bytes:
    return interrupted[1].read_bytes()


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_search_is_refused(runs: Runs, interrupted: tuple[list[str], Path], saved: bytes, name: str) -> None:
    command, path = interrupted
    change, said = CHANGES[name]
    state = copy.deepcopy(unpack(saved, path))
    change(state)
    path.write_bytes(pack(state))
    assert runs.finish(*command, "--resume") == 2, runs.said()
    line = runs.said().splitlines()[-1]
    assert line.startswith("mabprune: ") and said in line and "Traceback" not in runs.said()
    assert line.endswith("start anew with output.overwrite: true and without --resume")


@pytest.mark.parametrize("part", [0.0, 0.01, 0.1, 0.4, 0.7, 0.999])
def test_a_flipped_bit_is_refused(runs: Runs, interrupted: tuple[list[str], Path], saved: bytes, part: float) -> None:
    command, path = interrupted
    flipped = bytearray(saved)
    flipped[int(part * len(saved))] ^= 4
    path.write_bytes(bytes(flipped))
    assert runs.finish(*command, "--resume") == 2, runs.said()
    assert "Traceback" not in runs.said()
    assert runs.said().splitlines()[-1].endswith("start anew with output.overwrite: true and without --resume")
