"""Removals by the cost of refits: what goes first, what candidates are tried, and where settings reach."""

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch

from hf_mabprune.compensation import make_compensation
from hf_mabprune.config import TargetConfig, check
from hf_mabprune.effects.pulls.cost import Cost
from hf_mabprune.effects.refit_costs import RefitCosts
from hf_mabprune.runtime.accelerator import make_accelerator
from hf_mabprune.search.allocation import Allocation
from hf_mabprune.search.rules.refit import LIMIT, Refit
from hf_mabprune.search.run import make_rule
from hf_mabprune.selection.plan import Plan
from hf_mabprune.selection.target import make_plan
from hf_mabprune.session import Session
from tests.problems import example_of, limits, problem
from tests.search.known_arms import ARMS, plan
from tests.seeds import moved


class Known(Allocation):
    """An allocation that knows the best scores of each size, and measures nothing."""

    passes = 0.0

    def __init__(self, scores: dict[int, np.ndarray]) -> None:
        self.by_size, self.cost, self.starts = scores, Cost(pulls=1, forward_tokens=7, seconds=1.0), []

    def run(self, plan: Plan, orders: Sequence[np.ndarray], start: np.ndarray) -> Iterator[None]:
        self.scores = self.by_size[int(plan.budgets[0].amount)]
        self.starts.append((len(orders), int(start.sum())))
        yield

    def summary(self) -> str:
        return "known"


def test_every_size_gets_its_own_allocation_and_larger_sizes_hold_smaller_ones() -> None:
    rng = np.random.default_rng(moved(0))
    small, large = plan(0.25), plan(0.5)
    amounts = [int(each.budgets[0].amount) for each in (small, large)]
    known = Known({amount: rng.normal(size=ARMS) for amount in amounts})
    rule, everything = Refit(), np.ones(ARMS, dtype=bool)
    rule.allocation = known
    rule.orders = lambda rewards: [rewards]  # type: ignore[method-assign]
    removal, steps = None, 0
    settling = rule.settle([small, large], np.zeros(ARMS), everything, 0.0, 1.0)
    try:
        while True:
            next(settling)
            steps += 1
    except StopIteration as end:
        removal = end.value

    first, _ = small.choose(known.by_size[amounts[0]], everything)
    second, _ = large.choose(known.by_size[amounts[1]], first)
    assert np.array_equal(removal.kept, second) and known.starts == [(1, ARMS), (2, int(first.sum()))]
    assert set(removal.removed[: (~first).sum()]) == set(np.flatnonzero(~first)), "the smaller size comes first"
    assert set(removal.removed) == set(np.flatnonzero(~second))
    assert steps == 2 and rule.summary() == "known"
    assert rule.cost == Cost(0, 7, 0, 1.0), "sets that were measured are no pulls of arms"


def test_removals_go_by_the_cost_along_corrected_by_what_pulls_saw() -> None:
    _, _, _, arms = problem("bert")
    count = len(arms)
    rng = np.random.default_rng(moved(0))
    along, alone = rng.exponential(size=count), rng.exponential(size=count)
    rule = Refit()
    rule.costs = RefitCosts(along, along, alone, {}, Cost())
    totals = {"parameters": int(arms.parameters.sum()), "macs": int(arms.macs.sum())}
    plan = make_plan(arms, TargetConfig(neurons=0.5), totals, "per_layer", limits(arms, 16))
    rewards = -alone * rng.uniform(0.5, 2, size=count)
    rewards[0], rewards[1] = 1.0, -1e6  # better off without it, and far off
    kept, gone, scores = rule.choose(plan, rewards, np.ones(count, dtype=bool), 0.0, 1.0)

    expected = along * np.clip(-rewards / alone, 1 / LIMIT, LIMIT)
    np.testing.assert_allclose(-scores, expected)
    assert expected[0] == along[0] / LIMIT and expected[1] == along[1] * LIMIT
    assert set(gone) == set(np.flatnonzero(~kept))
    neurons = arms.of_kind("neuron")
    assert set(gone) == set(neurons[np.argsort(expected[neurons])[: len(neurons) // 2]])


BASE = {
    "model": {"name": "m"},
    "task": {"dataset": {"path": "d"}},
    "prune": {"target": {"neurons": 0.5}},
    "output": {"dir": "o"},
}


@pytest.mark.parametrize("damping", [0.01, 1.0])
def test_the_damping_of_the_refits_reaches_costs_and_stand_ins(damping: float) -> None:
    model, task, batches, arms = problem("bert")
    settings = check(BASE | {"compensation": {"name": "least_squares", "damping": damping}})
    session = Session(
        settings, model, task.processor, task, arms, {"calibration": batches}, example_of(7), {}, make_accelerator(),
        torch.float32, make_compensation(settings.compensation),
    )  # fmt: skip
    rule = make_rule(settings)
    rule.prepare(session)
    expected, usual = RefitCosts.of(model, arms, task, batches, 0, damping), RefitCosts.of(model, arms, task, batches)
    assert isinstance(rule, Refit) and rule.costs is not None
    assert np.array_equal(rule.costs.along, expected.along)
    for path, stand_in in expected.stand_ins.items():
        assert torch.equal(rule.stand_ins[path].matrix, stand_in.matrix)
        assert torch.equal(stand_in.matrix, usual.stand_ins[path].matrix) == (damping == 0.01)


def test_orders_are_corrected_by_what_was_measured_and_not() -> None:
    along, alone = np.arange(1.0, 9.0), np.full(8, 2.0)
    rule = Refit()
    rule.costs = RefitCosts(along, np.full(8, 3.0), alone, {}, Cost())
    measured = np.full(8, -8.0)
    measured[0] = -1000.0  # beyond the limit
    corrected, plain, evenly = rule.orders(measured)
    ratio = np.full(8, 4.0)
    ratio[0] = LIMIT
    np.testing.assert_allclose(corrected, -along * ratio)
    np.testing.assert_allclose(plain, -along)
    assert evenly.tolist() == [-3.0] * 8
