"""Removals with refits: stand-ins against refitted weights, costs against each other, and what goes by them."""

import copy

import numpy as np
import pytest
import torch

from hf_mabprune.architectures import architecture_of, projection_of
from hf_mabprune.architectures.sites import members
from hf_mabprune.effects.activations import moments
from hf_mabprune.effects.interactions import Interactions
from hf_mabprune.effects.masking import keep_masks, masked
from hf_mabprune.effects.pulls.reference import ReferencePulls
from hf_mabprune.effects.pulls.replay import ReplayPulls
from hf_mabprune.effects.refit_costs import RefitCosts
from hf_mabprune.effects.routed import sent_to_experts
from tests.problems import arms_of, problem, pull_all, rounding, small_effects, some_context, unasked, whole
from tests.tiny_sizes import UNLIKE


@pytest.mark.parametrize("model_type", UNLIKE)
def test_a_stand_in_is_the_arm_removed_and_the_rest_refitted(model_type: str) -> None:
    model, task, batches, arms = problem(model_type)
    model.double()
    if model_type == "mixtral":
        model.set_experts_implementation("eager")  # grouped products are not for double precision
    refit_costs = RefitCosts.of(model, arms, task, batches)
    sites = {site.name: site for site in architecture_of(model).sites(model)}
    for arm in (1, int(arms.of_kind("head")[-1])):
        site = sites[str(arms.site[arm])]
        stand_in = refit_costs.stand_ins[site.name]
        span = slice(int(arms.start[arm]) * site.unit_size, int(arms.stop[arm]) * site.unit_size)
        refitted = copy.deepcopy(model)
        projection = projection_of(refitted, site)
        share = projection.weight.detach()[:, span] @ stand_in.matrix[:, span].T  # [D, C]
        projection.write(projection.weight.detach() - share)
        if stand_in.mean.any():
            projection.write_bias((0 if projection.bias is None else projection.bias.detach()) + share @ stand_in.mean)
        assert projection.weight[:, span].abs().max() < 1e-12, "its own columns are empty"
        kept = np.ones(len(arms), dtype=bool)
        kept[arm] = False
        with (
            torch.no_grad(),
            masked(model, masks=keep_masks(model, arms.kept_units(kept)), stand_ins=refit_costs.stand_ins),
        ):
            found = task.readout(model, batches[0]).outputs
        with torch.no_grad():
            expected = task.readout(refitted, batches[0]).outputs
        torch.testing.assert_close(found, expected, rtol=0, atol=max(1e-10, 100 * rounding(model)))


@pytest.mark.parametrize("in_context", [False, True])
@pytest.mark.parametrize("model_type", UNLIKE)
def test_replayed_pulls_with_stand_ins_equal_reference_pulls(model_type: str, in_context: bool) -> None:
    model, task, batches, arms = problem(model_type)
    model.double()
    stand_ins = RefitCosts.of(model, arms, task, batches).stand_ins
    kept = some_context(arms) if in_context else whole(arms)
    slow = pull_all(ReferencePulls(model, arms, task, batches, stand_ins=stand_ins), kept)
    fast = pull_all(ReplayPulls(model, arms, task, batches, stand_ins=stand_ins), kept)
    plain = pull_all(ReplayPulls(model, arms, task, batches), kept)

    np.testing.assert_allclose(fast, slow, rtol=0, atol=max(1e-10, rounding(model)))
    assert np.abs(fast - plain).max() > 1e-6
    experts = arms.kind[np.repeat(np.flatnonzero(kept), 2)] == "expert"
    if not in_context:
        np.testing.assert_allclose(fast[experts], plain[experts], rtol=0, atol=1e-12)  # nothing stands in for those


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


@pytest.mark.parametrize("model_type", ["bert", "llama", "gpt2", "t5", "mixtral"])
def test_costs_grow_along_the_removals_of_a_site(model_type: str) -> None:
    model, task, batches, arms = problem(model_type)
    refit_costs = RefitCosts.of(model, arms, task, batches)
    sites = {site.name: site for site in architecture_of(model).sites(model)}
    experts = [site for site in sites.values() if site.kind == "expert"]
    added = {name: sent.added for name, sent in sent_to_experts(model, task, batches, experts).items()}
    for site, rows in arms.groups():
        if site.endswith("gate"):  # whole experts, with nothing in their place
            assert np.array_equal(refit_costs.along[rows], refit_costs.alone[rows])
            assert site not in refit_costs.stand_ins
            asked = [added[part.name] for part in members(sites[site], list(sites.values()))]
            assert refit_costs.evenly[rows].argsort().tolist() == np.argsort(asked).tolist()
            continue
        first = rows[np.argmin(refit_costs.along[rows])]
        assert refit_costs.along[first] == pytest.approx(refit_costs.alone[rows].min(), rel=1e-3)
        assert refit_costs.alone[first] == pytest.approx(refit_costs.alone[rows].min(), rel=1e-3)
        assert refit_costs.along[rows].sum() > refit_costs.alone[rows].sum() * (1 - 1e-6)


def test_one_of_two_equal_arms_goes_at_no_cost_and_the_other_does_not() -> None:
    model, task, batches, arms = problem("bert")
    site = next(site for site in architecture_of(model).sites(model) if site.kind == "neuron")
    maker = model.base_model.get_submodule(f"{site.prefix}intermediate.dense")
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


def test_experts_that_no_position_goes_to_are_free() -> None:
    model, task, batches = unasked()
    arms = arms_of(model, 16, batches)
    sites = [site for site in architecture_of(model).sites(model) if site.expert is not None]
    idle = [name for name, found in moments(model, task, batches, sites).items() if not found.second.any()]
    refit_costs = RefitCosts.of(model, arms, task, batches)
    rows = np.isin(arms.site, idle)
    assert rows.any()
    assert np.isfinite(refit_costs.along).all() and np.isfinite(refit_costs.alone).all()
    assert not refit_costs.along[rows].any() and not refit_costs.alone[rows].any()
    assert all(stand_in.matrix.isfinite().all() for stand_in in refit_costs.stand_ins.values())
