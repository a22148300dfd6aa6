"""Candidates: what goes with a part counts whole, and only what is there to go."""

from dataclasses import replace

import numpy as np

from hf_mabprune.config import TargetConfig
from hf_mabprune.search.candidates import Candidates
from hf_mabprune.selection.plan import Budget
from hf_mabprune.selection.target import make_plan
from tests.problems import limits, problem, whole


def test_keys_and_values_that_go_with_the_last_head_count_in_the_size_of_its_part() -> None:
    *_, arms = problem("bert")
    plan = make_plan(arms, TargetConfig(heads=0.5), {"parameters": 10**6, "macs": 10**6}, "per_layer", limits(arms))
    (site, rows), *_ = [group for group in arms.groups() if arms.kind[group[1][0]] == "head"]
    cost = np.ones(len(arms))
    with_last = {site: np.array([3.0, *np.zeros(len(rows))])}
    shared = Budget("parameters", np.arange(len(arms)), cost, float(cost.sum()), 4.0, by_cost=True, besides=with_last)
    start = whole(arms)
    part = next(number for number, own in enumerate(plan.parts()) if np.array_equal(own, rows))
    assert Candidates(replace(plan, budgets=(shared,)), start).size(part) == len(rows) + 3
    start[rows[0]] = False
    assert Candidates(replace(plan, budgets=(shared,)), start).size(part) == len(rows) - 1 + 3
    assert Candidates(plan, start).size(part) == len(rows) - 1
