"""What every registered criterion must do, whatever its formula."""

from typing import cast

import numpy as np
import pytest
import torch

from hf_mabprune.arms import WITHIN
from hf_mabprune.criteria import CRITERIA, CalibrationStatistics, Criterion
from hf_mabprune.registry import check_options
from hf_mabprune.selection.selected import Selection
from research.benchmarks.meter import Meter
from tests.criteria.by_hand import case, fresh, plan_of
from tests.problems import arms_of, unasked

NAMES = [name for name in CRITERIA.names() if CRITERIA.get(name).ranks(WITHIN)]
BY_SCORE = [name for name in NAMES if CRITERIA.get(name).choose is Criterion.choose]
TYPES = ("bert", "llama")
TARGETS = [{"neurons": 0.6, "heads": 0.5}, {"heads": 0.5}, {"parameters": 0.4}, {"macs": 0.5}]


SCORED = [(model_type, block) for model_type in TYPES for block in (1, 16, 20)]
SCORED += [(model_type, 16) for model_type in ("gpt2", "mixtral", "t5", "vit")]


@pytest.mark.parametrize(("model_type", "block"), SCORED)
@pytest.mark.parametrize("name", NAMES)
def test_scores_are_finite_and_one_an_arm(name: str, model_type: str, block: int) -> None:
    statistics = case(model_type, block)
    scores = CRITERIA.get(name)().scores(statistics)
    assert scores.shape == (len(statistics.arms),) and scores.dtype == np.float64
    assert np.isfinite(scores).all()
    assert len(np.unique(scores)) > len(scores) / 2


@pytest.mark.parametrize("name", NAMES)
def test_experts_that_no_position_goes_to_have_scores_as_all(name: str) -> None:
    model, task, batches = unasked()
    arms = arms_of(model, 16, batches)
    assert np.isfinite(CRITERIA.get(name)().scores(CalibrationStatistics(model, arms, task, batches))).all()


@pytest.mark.parametrize("name", NAMES)
def test_the_same_statistics_give_the_same(name: str) -> None:
    first, second = fresh("llama", 16), fresh("llama", 16)
    criterion = CRITERIA.get(name)()
    plan = plan_of(first, {"parameters": 0.4}, "per_layer")
    assert np.array_equal(criterion.scores(first), criterion.scores(second))
    assert np.array_equal(criterion.choose(first, plan)[1], criterion.choose(second, plan)[1])


@pytest.mark.parametrize("model_type", TYPES)
@pytest.mark.parametrize("name", NAMES)
def test_the_model_is_left_as_it_was(name: str, model_type: str) -> None:
    statistics = fresh(model_type, 16)
    model = statistics.model
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    CRITERIA.get(name)().choose(statistics, plan_of(statistics, {"neurons": 0.5}, "per_layer"))

    assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("model_type", TYPES)  # kfac_obs: one coordinate of two classes, two drawn of a vocabulary
@pytest.mark.parametrize("name", NAMES)
def test_declared_passes_are_those_that_are_made_and_metered(
    name: str, model_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    statistics = fresh(model_type, 16)
    with torch.no_grad():
        readout = statistics.task.readout(statistics.model, statistics.batches[0])
    declared = CRITERIA.get(name).passes_on(readout)
    forwards, backwards = [], []
    grad = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *args, **kwargs: backwards.append(1) or grad(*args, **kwargs))
    statistics.model.register_forward_pre_hook(lambda *_: forwards.append(1))
    meter = Meter(statistics)
    meter.start()
    CRITERIA.get(name)().scores(cast(CalibrationStatistics, meter))

    batches = len(statistics.batches)
    assert declared == meter.passes() == (len(forwards) / batches, len(backwards) / batches)


@pytest.mark.parametrize("target", TARGETS, ids=str)
@pytest.mark.parametrize("layout", ["per_layer", "uniform"])
@pytest.mark.parametrize("model_type", TYPES)
@pytest.mark.parametrize("name", NAMES)
def test_plans_are_met_and_the_order_says_how(
    name: str, model_type: str, layout: str, target: dict[str, float]
) -> None:
    statistics = case(model_type, 16)
    plan = plan_of(statistics, target, layout)
    kept, order = CRITERIA.get(name)().choose(statistics, plan)

    assert kept.shape == (len(statistics.arms),) and kept.dtype == bool
    assert sorted(order) == list(range(len(kept)))
    assert set(order[: (~kept).sum()]) == set(np.flatnonzero(~kept))
    assert np.array_equal(Selection.along(plan, order, 1, 16).kept, kept)
    for budget in plan.budgets:
        gone = budget.cost[budget.candidates[~kept[budget.candidates]]].sum()
        assert gone >= budget.amount - (0 if budget.by_cost else budget.cost.max())
    counts: dict[str, set[int]] = {}
    for site, rows in statistics.arms.groups():
        assert kept[rows].sum() >= plan.floors[site]
        counts.setdefault(str(statistics.arms.kind[rows[0]]), set()).add(int(kept[rows].sum()))
    if layout == "uniform":
        assert all(len(sizes) == 1 for sizes in counts.values())


@pytest.mark.parametrize("name", NAMES)
def test_plans_with_experts_are_met(name: str) -> None:
    statistics = case("mixtral", 16)
    arms, plan = statistics.arms, plan_of(statistics, {"neurons": 0.3, "experts": 0.25}, "per_layer")
    kept, order = CRITERIA.get(name)().choose(statistics, plan)
    assert sorted(order) == list(range(len(kept)))
    assert kept[arms.of_kind("head")].all() and (~kept[arms.of_kind("expert")]).sum() == 2
    keep = {site: len(units) for site, units in arms.kept_units(kept).items()}
    for layer in (0, 1):
        widths = {keep[f"layers.{layer}.mlp.experts.{expert}"] for expert in range(4)}
        assert len(widths) == 1 and keep[f"layers.{layer}.mlp.gate"] >= 2
    assert {keep[f"layers.{layer}.mlp.experts.0"] for layer in (0, 1)} != {48}


@pytest.mark.parametrize("name", ["magnitude", "wanda_sp", "activation_variation", "minitron"])
def test_an_expert_is_all_its_neurons_where_scores_add_up(name: str) -> None:
    statistics = case("mixtral", 16)
    arms, scores = statistics.arms, CRITERIA.get(name)().scores(case("mixtral", 16))
    for arm in arms.of_kind("expert"):
        own = arms.site == f"layers.{arms.layer[arm]}.mlp.experts.{arms.start[arm]}"
        assert own.sum() == 3 and scores[arm] == pytest.approx(scores[own].sum(), rel=1e-9)


def test_an_expert_goes_with_nothing_in_its_place() -> None:
    statistics = case("mixtral", 16)
    arms = statistics.arms
    sites = {site.name: site for site in statistics.all_sites}
    found = {name: CRITERIA.get(name)().scores(statistics) for name in ("obs", "kfac_obs")}
    for arm in arms.of_kind("expert"):
        name = f"layers.{arms.layer[arm]}.mlp.experts.{arms.start[arm]}"
        weight, factors = statistics.weight(sites[name]), statistics.kfac_factors[name]
        second = statistics.moments[name].second.numpy()
        assert found["obs"][arm] == pytest.approx(np.trace(weight @ second @ weight.T), rel=1e-6)
        outputs = factors.outputs.numpy() @ weight @ factors.inputs.second.numpy() @ weight.T
        assert found["kfac_obs"][arm] == pytest.approx(np.trace(outputs) / 2, rel=1e-6)


@pytest.mark.parametrize("block", [4, 20])
@pytest.mark.parametrize("name", NAMES)
def test_a_target_beyond_what_scores_would_like_leaves_no_layer_empty(name: str, block: int) -> None:
    statistics = case("bert", block)
    criterion = CRITERIA.get(name)()
    scores = criterion.scores(statistics) + 1000.0 * (statistics.arms.layer == 0)  # all of layer 1 first
    criterion.scores = lambda _: scores  # type: ignore[method-assign]
    kept, _ = criterion.choose(statistics, plan_of(statistics, {"neurons": 0.5, "heads": 0.5}, "per_layer"))
    keep = statistics.arms.kept_units(kept)
    heads, neurons = (len(keep[f"encoder.layer.1.{path}output.dense"]) for path in ("attention.", ""))
    assert 16 <= neurons < 48 and heads >= 1


@pytest.mark.parametrize("name", BY_SCORE)
def test_arms_go_by_score_per_cost_where_scores_add_up_and_by_score_elsewhere(name: str) -> None:
    statistics = case("llama", 4)
    criterion, plan = CRITERIA.get(name)(), plan_of(statistics, {"parameters": 0.3}, "per_layer")
    kept, _ = criterion.choose(statistics, plan)
    value = criterion.scores(statistics) / (statistics.arms.parameters if criterion.per_cost else 1)
    free = kept.copy()
    for site, rows in statistics.arms.groups():
        free[rows] &= kept[rows].sum() > plan.floors[site]
    assert value[~kept].max() <= value[free].min()


def test_scores_that_are_not_finite_are_refused() -> None:
    statistics = fresh("bert", 16)
    with torch.no_grad():
        statistics.model.bert.encoder.layer[0].output.dense.weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"not finite for 1 of 14 arms, at encoder\.layer\.0\.output\.dense: the"):
        CRITERIA.get("magnitude")().choose(statistics, plan_of(statistics, {"neurons": 0.5}, "per_layer"))


def test_options_are_checked() -> None:
    assert check_options("criterion", "fisher", CRITERIA.get("fisher"), {"per_example": True}) == {"per_example": True}
    with pytest.raises(
        ValueError, match=r"criterion 'fisher' has no option 'per_exmple'\. Did you mean 'per_example'\?"
    ):
        check_options("criterion", "fisher", CRITERIA.get("fisher"), {"per_exmple": True})
    with pytest.raises(ValueError, match=r"damping must be finite and above 0, got 0"):
        CRITERIA.get("obs")(damping=0)
