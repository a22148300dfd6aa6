"""Allocation: what it measures is the refitted model, what it takes is a gain, and it keeps to its trials."""

import copy

import numpy as np
import pytest
import torch

from hf_mabprune.compensation import DenseReference, compensate, make_compensation, refit_all
from hf_mabprune.config import TargetConfig
from hf_mabprune.search.allocation import Allocation, _is_gain
from hf_mabprune.selection.plan import Plan
from hf_mabprune.selection.target import make_plan
from hf_mabprune.surgery.cut import cut
from tests.problems import arms_of, limits, problem
from tests.seeds import moved

METHOD = make_compensation("least_squares")


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
    compensate(make_compensation({"name": "least_squares", "guard": False}), reference, small, keep)
    return reference.divergence(small)


@pytest.mark.parametrize("model_type", ["bert", "llama", "mistral", "gpt2", "mixtral", "t5"])
def test_what_it_reports_is_the_divergence_of_the_refitted_model(model_type: str) -> None:
    allocation, plan, scores = make(model_type, trials=30)
    for _ in allocation.run(plan, [scores], whole(plan)):
        pass
    assert allocation.before == pytest.approx(divergence(allocation, plan, scores), rel=1e-5)
    assert allocation.after == pytest.approx(divergence(allocation, plan, allocation.scores), rel=1e-5)
    assert allocation.after <= allocation.before
    assert (allocation.taken > 0) == (allocation.after < allocation.before)
    assert 2 <= allocation.cost.pulls <= 30 + 1 and allocation.cost.forward_tokens > 0


def test_outputs_that_are_no_numbers_are_never_a_gain() -> None:
    fine, broken = np.array([0.1, 0.2, 0.3]), np.array([0.0, np.inf, 0.0])
    assert _is_gain(broken, fine) and not _is_gain(fine, broken)
    assert not _is_gain(broken, broken) and not _is_gain(fine, np.full(3, np.nan))


def test_a_model_whose_outputs_are_no_numbers_is_infinitely_far() -> None:
    allocation, _, _ = make("bert", trials=1)
    small = copy.deepcopy(allocation.reference.model)
    with torch.no_grad():
        small.classifier.weight.fill_(torch.nan)
    assert allocation.reference.divergence(small) == np.inf
    assert np.isinf(allocation.reference.divergences(small)).all()


def test_it_begins_with_the_best_candidate() -> None:
    allocation, plan, scores = make("bert", trials=4)
    candidates = [scores, -1 - scores, np.roll(scores, 1)]
    steps = sum(1 for _ in allocation.run(plan, candidates, whole(plan)))
    best = min(divergence(allocation, plan, candidate) for candidate in candidates)
    assert allocation.before == pytest.approx(divergence(allocation, plan, scores), rel=1e-5)
    assert allocation.after <= best * (1 + 1e-5)
    assert len(candidates) <= steps == allocation.cost.pulls <= 4 + len(candidates)


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
        allocation.cache.limit = limit
        for _ in allocation.run(plan, [scores], whole(plan)):
            pass
        found.append(allocation)
    assert found[0].cache.refits and not found[1].cache.refits
    assert np.array_equal(found[0].scores, found[1].scores) and found[0].summary() == found[1].summary()


def test_held_out_data_that_are_all_broken_change_nothing() -> None:
    allocation, plan, scores = make("bert", trials=3)
    reference = allocation.reference
    with torch.no_grad():
        reference.model.bert.embeddings.word_embeddings.weight.fill_(float("nan"))
    assert reference.divergences(reference.model).tolist() == [np.inf] == [reference.divergence(reference.model)]
    for _ in allocation.run(plan, [scores], whole(plan)):
        pass
    assert allocation.taken == 0 and np.array_equal(allocation.scores, scores)


def test_a_gain_exceeds_its_standard_error() -> None:
    before = np.array([1.0, 1.0, 1.0, 1.0])
    assert _is_gain(before, np.array([0.9, 0.9, 0.9, 0.9]))
    assert not _is_gain(before, before)
    # Mean 0.1, standard deviation 0.2, standard error 0.1: not beyond it; a little more is.
    after = np.array([0.7, 1.1, 0.9, 0.9])
    difference = before - after
    error = difference.std(ddof=1) / 2
    assert _is_gain(before, after) == (difference.mean() > error)
    assert not _is_gain(before, np.array([0.5, 1.4, 1.0, 0.9]))
