"""What methods choose by one draw of calibration data, where not all of them rank every kind of arm."""

from pathlib import Path

import numpy as np
import torch

from hf_mabprune.criteria import CRITERIA, CalibrationStatistics
from hf_mabprune.runtime.accelerator import make_accelerator
from hf_mabprune.session import Session
from research.benchmarks.draw import Draw
from research.benchmarks.suite import read_suite
from tests.problems import arms_of, example_of, problem
from tests.research.suites import SUITE, write

RANKS_EXPERTS = ("router_frequency", "reap")


def test_criteria_of_experts_choose_beside_arms_of_other_kinds(tmp_path: Path) -> None:
    model, task, batches, arms = problem("mixtral")
    methods = {name: {"criterion": name} for name in RANKS_EXPERTS}
    suite = read_suite(
        write(tmp_path, {**SUITE, "targets": [{"experts": 0.5}], "methods": methods, "planned": []}),
    )
    totals = {"parameters": int(arms.parameters.sum()), "macs": int(arms.macs.sum())}
    session = Session(
        suite.settings("first"), model, task.processor, task, arms, {"calibration": batches}, example_of(7), totals,
        make_accelerator(), torch.float32, None,
    )  # fmt: skip
    draw, experts = Draw(suite, "first", session, seed=0), arms_of(model, 1, batches, ["expert"])
    assert set(arms.kinds()) > set(experts.kinds())
    for name in RANKS_EXPERTS:
        chosen = draw.choose(suite.cells([f"method={name}", "task=first"]))["experts-0.5", "equal"]
        scores = CRITERIA.get(name)().scores(CalibrationStatistics(model, experts, task, batches))
        for site, rows in experts.groups():
            best = np.sort(np.argsort(scores[rows])[len(rows) // 2 :])
            np.testing.assert_array_equal(chosen.keep[site], best)
        assert chosen.cost.forward_tokens == sum(batch.tokens for batch in batches)
        assert chosen.cost.backward_tokens == 0
