"""Removals with refits: stand-ins against refitted weights, costs against each other, and what goes by them."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from hf_mabprune.architectures import ARCHITECTURES, architecture_of, linear_at
from hf_mabprune.effects.interactions import Interactions
from hf_mabprune.effects.masking import keep_masks, masked
from hf_mabprune.effects.pulls.reference import ReferencePulls
from hf_mabprune.effects.pulls.replay import ReplayPulls
from hf_mabprune.effects.refit_costs import RefitCosts
from tests.problems import problem, pull_all, rounding, small_effects


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
    rewards = Interactions(*pulls.effects(samples=200, seed=0)).rewards()
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
