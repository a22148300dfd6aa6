"""Removals with refits: stand-ins against refitted weights, costs against each other, and what goes by them."""

import copy
import re

import numpy as np
import pytest
import torch
from torch import nn

from hf_mabprune.architectures import ARCHITECTURES, architecture_of, linear_at
from hf_mabprune.compensation import make_compensation
from hf_mabprune.config import TargetConfig, check
from hf_mabprune.effects.interactions import Interactions
from hf_mabprune.effects.masking import keep_masks, masked
from hf_mabprune.effects.pulls.cost import Cost
from hf_mabprune.effects.pulls.reference import ReferencePulls
from hf_mabprune.effects.pulls.replay import ReplayPulls
from hf_mabprune.effects.refit_costs import RefitCosts
from hf_mabprune.runtime.accelerator import make_accelerator
from hf_mabprune.search.rules.refit import LIMIT, Refit
from hf_mabprune.search.run import make_rule
from hf_mabprune.selection.target import make_plan
from hf_mabprune.session import Session
from tests.pulls.test_pulls import problem, pull_all, rounding
from tests.seeds import moved
from tests.test_interactions import small_effects


@pytest.mark.parametrize("model_type", ARCHITECTURES.names())
def test_a_stand_in_is_the_arm_removed_and_the_rest_refitted(model_type: str) -> None:
    model, task, batches, arms = problem(model_type)
    model.double()
    refit_costs = RefitCosts.of(model, arms, task, batches)
    sites = {(site.kind, site.layer): site for site in architecture_of(model).sites(model)}
    for arm in (1, len(arms) - 1):
        site = sites[str(arms.kind[arm]), int(arms.layer[arm])]
        stand_in = refit_costs.stand_ins[site.output]
        span = slice(int(arms.start[arm]) * site.unit_size, int(arms.stop[arm]) * site.unit_size)
        refitted = copy.deepcopy(model)
        projection = linear_at(refitted, site.output)
        share = projection.weight.detach()[:, span] @ stand_in.matrix[:, span].T  # [D, C]
        bias = 0 if projection.bias is None else projection.bias.detach()
        projection.weight = nn.Parameter(projection.weight.detach() - share)
        projection.bias = nn.Parameter(bias + share @ stand_in.mean)
        assert projection.weight[:, span].abs().max() < 1e-12, "its own columns are empty"
        kept = np.ones(len(arms), dtype=bool)
        kept[arm] = False
        inputs = task.inputs(batches[0])
        with (
            torch.no_grad(),
            masked(model, **keep_masks(model, arms.kept_units(kept)), stand_ins=refit_costs.stand_ins),
        ):
            found = model(**inputs).logits
        with torch.no_grad():
            expected = refitted(**inputs).logits
        torch.testing.assert_close(found, expected, rtol=0, atol=max(1e-10, 100 * rounding(model)))


@pytest.mark.parametrize("model_type", ARCHITECTURES.names())
def test_replayed_pulls_with_stand_ins_equal_reference_pulls(model_type: str) -> None:
    model, task, batches, arms = problem(model_type)
    model.double()
    stand_ins = RefitCosts.of(model, arms, task, batches).stand_ins
    whole = np.ones(len(arms), dtype=bool)
    slow = pull_all(ReferencePulls(model, arms, task, batches, stand_ins=stand_ins), whole)
    fast = pull_all(ReplayPulls(model, arms, task, batches, stand_ins=stand_ins), whole)
    plain = pull_all(ReplayPulls(model, arms, task, batches), whole)

    np.testing.assert_allclose(fast, slow, rtol=0, atol=max(1e-10, rounding(model)))
    assert np.abs(fast - plain).max() > 1e-6


@pytest.mark.parametrize("model_type", ["bert", "llama"])
def test_effects_with_stand_ins_say_what_pulls_with_stand_ins_say(model_type: str) -> None:
    plain = small_effects(model_type)
    refit_costs = RefitCosts.of(plain.model, plain.arms, plain.task, plain.batches)
    pulls = ReplayPulls(plain.model, plain.arms, plain.task, plain.batches, stand_ins=refit_costs.stand_ins)
    count, batches = len(pulls.arms), len(pulls.batches)
    pulled = pulls.pull(np.repeat(np.arange(count), batches), np.tile(np.arange(batches), count))[:, 0]
    rewards = Interactions(*pulls.effects(samples=600, seed=0)).rewards()
    expected = pulled.reshape(count, batches).mean(1)

    tolerance = 0.02 if model_type == "bert" else 0.15  # labels are drawn for the language model
    assert np.abs(rewards - expected).max() <= tolerance * np.abs(expected).max()


@pytest.mark.parametrize("model_type", ["bert", "llama"])
def test_costs_grow_along_the_removals_of_a_site(model_type: str) -> None:
    model, task, batches, arms = problem(model_type)
    refit_costs = RefitCosts.of(model, arms, task, batches)
    for _, _, rows in arms.groups():
        first = rows[np.argmin(refit_costs.along[rows])]
        assert refit_costs.along[first] == pytest.approx(refit_costs.alone[rows].min(), rel=1e-3)
        assert refit_costs.alone[first] == pytest.approx(refit_costs.alone[rows].min(), rel=1e-3)
        assert refit_costs.along[rows].sum() > refit_costs.alone[rows].sum() * (1 - 1e-6)


def test_one_of_two_equal_arms_goes_at_no_cost_and_the_other_does_not() -> None:
    model, task, batches, arms = problem("bert")
    site = next(site for site in architecture_of(model).sites(model) if site.kind == "neuron")
    maker = linear_at(model, next(path for path in site.linears() if path != site.output))
    with torch.no_grad():
        maker.weight[:16], maker.bias[:16] = 4 * maker.weight[:16], 4 * maker.bias[:16]  # far above the damping
        maker.weight[16:32], maker.bias[16:32] = maker.weight[:16], maker.bias[:16]
    first, second = (int(arm) for arm in arms.of_kind("neuron")[:2])
    refit_costs = RefitCosts.of(model, arms, task, batches)
    pulls = ReplayPulls(model, arms, task, batches)
    masks = -pulls.pull(np.repeat([first, second], 3), np.tile([0, 1, 2], 2))[:, 0].reshape(2, 3).mean(1)

    assert max(refit_costs.alone[[first, second]]) < 0.2 * masks.min()
    low, high = sorted(refit_costs.along[[first, second]])
    assert low < 0.2 * high


def test_removals_go_by_the_cost_along_corrected_by_what_pulls_saw() -> None:
    _, _, _, arms = problem("bert")
    count = len(arms)
    rng = np.random.default_rng(moved(0))
    along, alone = rng.exponential(size=count), rng.exponential(size=count)
    rule = Refit()
    rule.costs = RefitCosts(along, alone, {}, Cost())
    totals = {"parameters": int(arms.parameters.sum()), "macs": int(arms.macs.sum())}
    plan = make_plan(arms, TargetConfig(neurons=0.5), totals, "per_layer", {"neuron": 16, "head": 1})
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


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({}, {"name": "refit"}),
        ({"search": {"rounds": 1}}, {"name": "refit"}),
        ({"search": {"rule": {"moves": 8}}}, {"name": "refit", "moves": 8}),
        ({"search": {"rounds": 4}}, {"name": "interactions"}),
        ({"search": {"reward": "loss"}}, {"name": "single"}),
        ({"search": {"rule": "interactions"}}, {"name": "interactions"}),
        ({"search": {"rule": {"name": "single"}}}, {"name": "single"}),
        ({"compensation": None}, {"name": "interactions"}),
        ({"compensation": None, "search": {"rule": "single"}}, {"name": "single"}),
        ({"compensation": None, "search": {"pulls_per_arm": 0}}, {"name": "interactions"}),
        ({"compensation": "mask_tuning"}, {"name": "interactions"}),
        ({"compensation": {"name": "least_squares"}, "search": {"pulls_per_arm": 0}}, {"name": "refit"}),
    ],
)
def test_the_rule_follows_from_the_other_settings(settings: dict, rule: dict) -> None:
    search = check(BASE | settings).search
    assert search.rule == rule
    assert check(check(BASE | settings).model_dump()).search == search, "what is resolved stays as it is"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"compensation": None, "search": {"rule": "refit"}}, "refit counts on compensation least_squares, got null"),
        ({"compensation": "mask_tuning", "search": {"rule": "refit"}}, "least_squares, got mask_tuning: set it, or"),
        ({"search": {"rule": "refit", "rounds": 4}}, "refit takes one round, got rounds 4"),
        ({"search": {"rule": "refit", "reward": "loss"}}, "search.rule refit is for the reward kl, got reward loss"),
        ({"search": {"rule": "interactions", "reward": "loss"}}, "rule interactions is for the reward kl, got reward"),
        ({"search": {"pulls_per_arm": 0, "reward": "loss"}}, "search.pulls_per_arm must be a number > 0"),
        ({"compensation": None, "search": {"pulls_per_arm": 0, "rule": "single"}}, "pulls_per_arm must be a"),
        ({"search": {"criterion": "obs", "rule": "single"}}, "a criterion chooses without pulls, so it takes no rule"),
        ({"search": {"criterion": "obs", "rounds": 2}}, "a criterion chooses without pulls, so it takes no rounds"),
        ({"search": {"criterion": {"damping": 1}}}, "criterion needs a name, e.g. {name: kfac_obs}"),
        ({"search": {"refit": True}}, "search.refit is no setting any more: write search.rule: refit"),
        ({"search": {"interactions": False}}, "search.interactions is no setting any more: write search.rule"),
        ({"search": {"moves": 8}}, "search.moves is no setting any more: write search.rule: {name: refit, moves"),
        ({"search": {"label_draws": 8}}, "search.label_draws is no setting any more: write search.rule: {label_draws"),
    ],
)
def test_a_search_that_contradicts_itself_is_refused(settings: dict, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)) as error:
        check(BASE | settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("damping", [0.01, 1.0])
def test_the_damping_of_the_refits_reaches_costs_and_stand_ins(damping: float) -> None:
    model, task, batches, arms = problem("bert")
    settings = check(BASE | {"compensation": {"name": "least_squares", "damping": damping}})
    session = Session(
        settings, model, task.tokenizer, task, arms, {"calibration": batches}, 7, {}, make_accelerator(),
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


def test_candidates_go_from_full_trust_in_what_was_measured_to_none() -> None:
    effects = Interactions(*small_effects("bert").effects(1, 1))
    arms = effects.slopes.shape[0]
    along, alone = np.arange(1.0, arms + 1), np.full(arms, 2.0)
    rule = Refit()
    rule.costs, rule._interactions = RefitCosts(along, alone, {}, Cost()), effects
    measured = np.full(arms, -8.0)
    measured[0] = -1000.0  # beyond the limit
    candidates = rule.candidates(measured)
    ratio = np.full(arms, 4.0)
    ratio[0] = LIMIT
    np.testing.assert_allclose(candidates[0], -along * ratio)
    np.testing.assert_allclose(candidates[2], -along * np.sqrt(ratio))
    np.testing.assert_allclose(candidates[1], -along * (-effects.rewards() / alone).clip(1 / LIMIT, LIMIT))
    np.testing.assert_allclose(candidates[-1], -along)
