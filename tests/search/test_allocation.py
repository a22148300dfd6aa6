"""Allocation: what it measures is the refitted model, what it takes is a gain, and it keeps to its trials."""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from hf_mabprune.compensation import DenseReference, compensate, make_compensation, refit_all
from hf_mabprune.config import TargetConfig
from hf_mabprune.effects.pulls.cost import Cost
from hf_mabprune.effects.reserve import Reserve
from hf_mabprune.search.allocation import Allocation, _gain
from hf_mabprune.selection.plan import Budget, Plan
from hf_mabprune.selection.target import make_plan
from hf_mabprune.surgery.cut import cut
from tests.problems import arms_of, limits, problem
from tests.seeds import moved

ALONE = {"name": "least_squares", "bottom_up": False, "both_sides": False}
METHOD = make_compensation(ALONE)


def make(model_type: str, trials: int, seed: int = 0) -> tuple[Allocation, Plan, np.ndarray]:
    model, task, batches, _ = problem(model_type)
    arms = arms_of(model, 4, batches)  # small enough for moves to tell
    totals = {"parameters": 10**6, "macs": 10**6}
    target = TargetConfig(neurons=0.5, heads=0.5, **({"experts": 0.25} if model_type == "mixtral" else {}))
    plan = make_plan(arms, target, totals, "per_layer", limits(arms))
    scores = -np.random.default_rng(moved(5)).random(len(arms))
    return Allocation(METHOD, DenseReference.on(model, task, batches), trials, seed), plan, scores


def whole(plan: Plan) -> np.ndarray:
    return np.ones(len(plan.arms), dtype=bool)


def divergence(allocation: Allocation, plan: Plan, scores: np.ndarray) -> float:
    """Of the cut model with every site refitted."""
    reference = allocation.reference
    keep = plan.arms.kept_units(plan.choose(scores, whole(plan))[0])
    small = cut(reference.model, keep, "per_layer")
    compensate(
        make_compensation({"name": "least_squares", "guard": False, "bottom_up": False}), reference, small, keep
    )
    return reference.divergence(small)


@pytest.mark.parametrize("model_type", ["bert", "llama", "mistral", "gpt2", "mixtral", "t5"])
def test_what_it_reports_is_the_divergence_of_the_refitted_model(model_type: str) -> None:
    allocation, plan, scores = make(model_type, trials=20)
    for _ in allocation.run(plan, [scores], whole(plan)):
        pass
    even = replace(plan, even=True)
    assert allocation.before == pytest.approx(divergence(allocation, even, scores), rel=1e-5)
    assert allocation.after == pytest.approx(divergence(allocation, plan, allocation.scores), rel=1e-5)
    assert allocation.after < allocation.before or allocation.taken == "equal widths"
    assert allocation.cost.pulls >= 8 and allocation.cost.forward_tokens > 0
    assert allocation.summary().startswith(f"{allocation.cost.pulls} allocations measured: held-out KL ")


def test_the_dense_model_stays_as_it_is() -> None:
    allocation, plan, scores = make("llama", trials=3)
    before = {name: tensor.clone() for name, tensor in allocation.reference.model.state_dict().items()}
    for _ in allocation.run(plan, [scores], whole(plan)):
        pass
    after = allocation.reference.model.state_dict()
    assert before.keys() == after.keys() and all(tensor.equal(after[name]) for name, tensor in before.items())


def test_outputs_that_are_no_numbers_are_never_a_gain() -> None:
    fine, broken = np.array([0.1, 0.2, 0.3]), np.array([0.0, np.inf, 0.0])
    assert _gain(broken, fine) == np.inf and _gain(fine, broken) == -np.inf
    assert _gain(broken, broken) < 0 and _gain(fine, np.full(3, np.nan)) < 0


def test_a_model_whose_outputs_are_no_numbers_is_infinitely_far() -> None:
    allocation, _, _ = make("bert", trials=1)
    small = copy.deepcopy(allocation.reference.model)
    with torch.no_grad():
        small.classifier.weight.fill_(torch.nan)
    assert allocation.reference.divergence(small) == np.inf
    assert np.isinf(allocation.reference.divergences(small)).all()


def test_equal_widths_are_taken_unless_something_else_is_better_for_certain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_mabprune.search.allocation.CERTAIN", np.inf)
    allocation, plan, scores = make("bert", trials=4)
    for _ in allocation.run(plan, [scores], whole(plan)):
        pass
    kept, _ = plan.choose(allocation.scores, whole(plan))
    for kind in ("neuron", "head"):
        sizes = [int(kept[rows].sum()) for _, rows in plan.arms.groups() if plan.arms.kind[rows[0]] == kind]
        assert max(sizes) - min(sizes) <= 1
    assert allocation.taken == "equal widths" and allocation.after == allocation.before


class Known(Allocation):
    """An allocation of a model whose divergence is the sum of what its arms are worth, twice that on every other
    example."""

    worth: np.ndarray

    def _measure(self, plan: Plan, kept: np.ndarray, parts: Sequence[int]) -> Iterator[None]:
        for part in parts:
            self._seen[kept.tobytes(), part] = self.worth[~kept].sum() * np.array([1.0, 2.0, 1.0, 2.0])
        self.cost += Cost(pulls=1)
        yield


def known(worth_of_sites: float) -> tuple[Known, Plan, np.ndarray]:
    """Sites are worth different things, from 1 to `worth_of_sites`; arms of a site likewise, up to 10."""
    allocation, plan, _ = make("bert", trials=60)
    twin = Known(METHOD, allocation.reference, 60)
    groups = plan.arms.groups()
    twin.worth = np.ones(len(plan.arms))
    for (_, rows), site in zip(groups, np.geomspace(1, worth_of_sites, len(groups)), strict=True):
        twin.worth[rows] = site * np.geomspace(1, 10, len(rows))[np.random.default_rng(0).permutation(len(rows))]
    return twin, plan, twin.worth


def test_the_better_order_within_sites_is_found() -> None:
    for turned in (False, True):
        allocation, plan, worth = known(worth_of_sites=1.0)
        orders = [-worth, -1 / worth]
        for _ in allocation.run(plan, orders[::-1] if turned else orders, whole(plan)):
            pass
        kept, _ = plan.choose(allocation.scores, whole(plan))
        for _, rows in plan.arms.groups():
            gone = rows[~kept[rows]]
            assert worth[gone].max(initial=0) <= worth[rows[kept[rows]]].min()


def test_more_goes_from_sites_that_bear_it_though_the_order_does_not_say_so() -> None:
    allocation, plan, worth = known(worth_of_sites=100.0)
    order = worth.copy()
    for _, rows in plan.arms.groups():
        order[rows] /= worth[rows].min()
    for _ in allocation.run(plan, [-order], whole(plan)):
        pass
    assert allocation.after < 0.8 * allocation.before and allocation.taken != "equal widths"


def test_nothing_is_bred_from_what_is_not_ahead_of_equal_widths() -> None:
    """The harm of a set is how unevenly it is spread, so that equal widths are best; what is designed ends the run."""

    class Even(Known):
        def _measure(self, plan: Plan, kept: np.ndarray, parts: Sequence[int]) -> Iterator[None]:
            gone = np.array([(~kept[rows]).mean() for rows in plan.parts()])
            for part in parts:
                self._seen[kept.tobytes(), part] = (1 + gone.std()) * np.array([1.0, 2.0, 1.0, 2.0])
            self.cost += Cost(pulls=1)
            yield

    allocation, plan, worth = known(worth_of_sites=100.0)
    even, found = Even(METHOD, allocation.reference, 60), []
    for each in (even, allocation):
        for _ in each.run(plan, [-worth], whole(plan)):
            pass
        found.append(each.passes)
    assert even.taken == "equal widths" and allocation.taken == "1 of its costs"
    assert found[0] < found[1], found


class WholeSites(Known):
    """Heads of a site cost as much together as one alone, in the first layer ten times as much as in the second."""

    def _measure(self, plan: Plan, kept: np.ndarray, parts: Sequence[int]) -> Iterator[None]:
        lost = 0.001 * (~kept & (plan.arms.kind == "neuron")).sum()
        for _, rows in plan.arms.groups():
            if plan.arms.kind[rows[0]] == "head" and not kept[rows].all():
                lost += (1.0, 0.1)[plan.arms.layer[rows[0]]]
        for part in parts:
            self._seen[kept.tobytes(), part] = lost * np.array([1.0, 2.0, 1.0, 2.0])
        self.cost += Cost(pulls=1)
        yield


def test_a_site_goes_as_a_whole_where_that_costs_least_and_its_floor_lets_it() -> None:
    allocation, plan, scores = make("bert", trials=60)
    heads = {site: rows for site, rows in plan.arms.groups() if plan.arms.kind[rows[0]] == "head"}
    first, second = heads
    everything = np.arange(len(plan.arms))
    cost = np.ones(len(plan.arms))
    target = Budget("parameters", everything, cost, float(cost.sum()), len(heads[second]) + 8.0, by_cost=True)
    with_last = np.array([3.0, *np.zeros(len(heads[second]))])
    for floor in (0, 1):
        floors = {**plan.floors, **dict.fromkeys(heads, floor)}
        one = replace(
            plan, budgets=(replace(target, besides={second: with_last} if not floor else {}),), floors=floors
        )
        twin = WholeSites(METHOD, allocation.reference, 60)
        for _ in twin.run(one, [scores], whole(one)):
            pass
        kept, gone = one.choose(twin.scores, whole(one))
        if floor:
            assert kept[heads[first]].any() and kept[heads[second]].any()
        else:
            assert kept[heads[first]].all() and not kept[heads[second]].any()
            assert twin.taken.startswith("1 as a whole") and len(gone) == len(heads[second]) + 5


@pytest.mark.parametrize("dear", ["neuron", "head"])
def test_a_kind_that_is_dear_stays_where_kinds_share_a_budget(dear: str) -> None:
    twin, plan, _ = known(worth_of_sites=1.0)
    twin.worth = np.where(plan.arms.kind == dear, 100.0, 1.0)
    rows = np.flatnonzero(plan.arms.kind != dear)
    cost = np.where(plan.arms.kind == dear, len(rows), 1.0)
    budget = Budget("parameters", np.arange(len(plan.arms)), cost, float(cost.sum()), len(rows) / 2, by_cost=True)
    one = replace(plan, budgets=(budget,))
    for _ in twin.run(one, [-cost], whole(one)):
        pass
    kept, _ = one.choose(twin.scores, whole(one))
    assert kept[plan.arms.kind == dear].all() and twin.after < twin.before


def test_what_a_larger_size_has_removed_stays_removed() -> None:
    allocation, plan, scores = make("bert", trials=4)
    start = whole(plan)
    start[::5] = False
    for _ in allocation.run(plan, [scores], start):
        pass
    assert not plan.choose(allocation.scores, start)[0][::5].any()


def test_the_same_seed_takes_the_same_moves() -> None:
    found = []
    for _ in range(2):
        allocation, plan, scores = make("bert", trials=20, seed=1)
        for _ in allocation.run(plan, [scores], whole(plan)):
            pass
        found.append(allocation)
    assert np.array_equal(found[0].scores, found[1].scores)
    assert found[0].taken == found[1].taken and found[0].summary() == found[1].summary()


def test_refits_that_are_known_are_those_that_are_made() -> None:
    allocation, plan, scores = make("bert", trials=1)
    reference, cache = allocation.reference, allocation.cache
    keep = plan.arms.kept_units(plan.choose(scores, whole(plan))[0])
    first, second = (cut(reference.model, keep, "per_layer") for _ in range(2))
    refit_all(METHOD, reference, first, keep, cache)
    size = len(cache.refits)
    refit_all(METHOD, reference, second, keep, cache)
    assert len(cache.refits) == size > 0
    for (name, one), (_, other) in zip(first.named_parameters(), second.named_parameters(), strict=True):
        assert one.equal(other), name


def test_with_no_room_for_refits_the_same_moves_are_taken() -> None:
    found = []
    for limit in (2**30, 0):
        allocation, plan, scores = make("bert", trials=20, seed=1)
        allocation.cache.reserve = Reserve(limit)
        for _ in allocation.run(plan, [scores], whole(plan)):
            pass
        found.append(allocation)
    assert found[0].cache.refits and not found[1].cache.refits
    assert np.array_equal(found[0].scores, found[1].scores) and found[0].summary() == found[1].summary()


def test_held_out_data_that_are_all_broken_leave_equal_widths() -> None:
    allocation, plan, scores = make("bert", trials=3)
    reference = allocation.reference
    with torch.no_grad():
        reference.model.bert.embeddings.word_embeddings.weight.fill_(float("nan"))
    assert reference.divergences(reference.model).tolist() == [np.inf] == [reference.divergence(reference.model)]
    for _ in allocation.run(plan, [scores], whole(plan)):
        pass
    assert allocation.taken == "equal widths"


def test_a_gain_is_counted_in_its_standard_errors() -> None:
    before = np.array([1.0, 1.0, 1.0, 1.0])
    assert _gain(before, np.array([0.9, 0.9, 0.9, 0.9])) > 1e6
    assert _gain(before, before) == 0
    # Mean 0.05, standard deviation 0.208, standard error 0.104.
    assert _gain(before, np.array([0.7, 1.2, 1.0, 0.9])) == pytest.approx(0.05 / 0.104083, rel=1e-4)
