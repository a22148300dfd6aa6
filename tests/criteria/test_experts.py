"""Criteria that rank experts alone, beside what a router's own output says."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hf_mabprune.checks import check_settings
from hf_mabprune.criteria import CRITERIA, CalibrationStatistics
from tests.criteria.by_hand import fresh, plan_of
from tests.problems import arms_of, settings_for, unasked

NAMES = ["router_frequency", "reap"]


TYPES = ("mixtral", "gpt_oss", "qwen2_moe", "deepseek_v3", "ernie4_5_moe", "phimoe")


@pytest.fixture(params=TYPES)
def statistics(request: pytest.FixtureRequest) -> CalibrationStatistics:
    known = fresh(request.param, 16)
    arms = arms_of(known.model, 16, known.batches, ["expert"])
    return CalibrationStatistics(known.model, arms, known.task, known.batches)


def take(given: list[torch.Tensor], _: torch.nn.Module, states: tuple[torch.Tensor]) -> None:
    given.append(states[0])


def of_expert(experts: Any, number: int, state: torch.Tensor) -> torch.Tensor:
    """[D], what one expert gives of the state of one position; with biases, as gpt_oss has it."""
    up, down = experts.gate_up_proj[number], experts.down_proj[number]
    if not hasattr(experts, "down_proj_bias"):
        return down @ (experts.act_fn(up.chunk(2)[0] @ state) * (up.chunk(2)[1] @ state))
    gate, linear = (state @ up + experts.gate_up_proj_bias[number]).unflatten(0, (-1, 2)).T
    gate, linear = gate.clamp(max=experts.limit), linear.clamp(-experts.limit, experts.limit)
    return ((linear + 1) * gate * torch.sigmoid(gate * experts.alpha)) @ down + experts.down_proj_bias[number]


def by_hand(statistics: CalibrationStatistics) -> dict[str, np.ndarray]:
    """Runs each layer's experts on what its router is given, one expert and one position after the other."""
    model = statistics.model.base_model
    layers = [layer for layer in model.layers if hasattr(layer.mlp, "experts")]
    sent, norms, positions = np.zeros((len(layers), 4)), np.zeros((len(layers), 4)), 0
    for batch in statistics.batches:
        counted = batch["attention_mask"].bool().flatten()
        given: list[torch.Tensor] = []
        hooks = [layer.mlp.register_forward_pre_hook(partial(take, given)) for layer in layers]
        with torch.no_grad():
            model(**{name: batch[name] for name in ("input_ids", "attention_mask")})
            for number, layer in enumerate(layers):
                states = given[number].flatten(0, 1)
                router = layer.mlp.router if hasattr(layer.mlp, "router") else layer.mlp.gate
                _, weights, chosen = router(states)
                for place in counted.nonzero().flatten().tolist():
                    for expert, weight in zip(chosen[place].tolist(), weights[place].tolist(), strict=True):
                        output = of_expert(layer.mlp.experts, expert, states[place])
                        sent[number, expert] += 1
                        norms[number, expert] += weight * float(output.norm())
        for hook in hooks:
            hook.remove()
        positions += int(counted.sum())
    return {"router_frequency": sent.ravel() / positions, "reap": (norms / sent.clip(min=1)).ravel()}


@pytest.mark.parametrize("name", NAMES)
def test_scores_are_those_of_the_definition(statistics: CalibrationStatistics, name: str) -> None:
    scores = CRITERIA.get(name)().scores(statistics)
    np.testing.assert_allclose(scores, by_hand(statistics)[name], rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_one_pass_is_enough_and_the_lowest_go(statistics: CalibrationStatistics, name: str) -> None:
    calls: list[int] = []
    statistics.model.register_forward_pre_hook(lambda *_: calls.append(1))
    criterion = CRITERIA.get(name)()
    scores = criterion.scores(statistics)
    kept, _ = criterion.choose(statistics, plan_of(statistics, {"experts": 0.25}, "uniform"))

    assert len(calls) == len(statistics.batches)
    for start in range(0, len(scores), 4):
        of_layer = slice(start, start + 4)
        assert np.flatnonzero(~kept[of_layer]).tolist() == [int(scores[of_layer].argmin())]


@pytest.mark.parametrize("name", NAMES)
def test_an_expert_that_nothing_is_sent_to_has_nothing(name: str) -> None:
    model, task, batches = unasked()
    arms = arms_of(model, 16, batches, ["expert"])
    scores = CRITERIA.get(name)().scores(CalibrationStatistics(model, arms, task, batches))
    assert np.isfinite(scores).all() and (scores == 0).any()


@pytest.mark.parametrize("name", NAMES)
def test_other_arms_are_refused_before_anything_is_loaded(name: str, tmp_path: Path, files: dict[str, str]) -> None:
    settings = settings_for(tmp_path, files, "mixtral", search={"criterion": name, "rounds": None})
    with pytest.raises(ValueError, match=f"criterion {name} ranks arms of kind expert alone"):
        check_settings(settings)
