"""Criteria that rank experts alone, beside what a router's own output says."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from hf_mabprune.checks import check_settings
from hf_mabprune.criteria import CRITERIA, CalibrationStatistics
from tests.criteria.by_hand import fresh, plan_of
from tests.problems import arms_of, settings_for, unasked

NAMES = ["router_frequency", "reap"]


@pytest.fixture
def statistics() -> CalibrationStatistics:
    known = fresh("mixtral", 16)
    arms = arms_of(known.model, 16, known.batches, ["expert"])
    return CalibrationStatistics(known.model, arms, known.task, known.batches)


def take(given: list[torch.Tensor], _: torch.nn.Module, states: tuple[torch.Tensor]) -> None:
    given.append(states[0])


def by_hand(statistics: CalibrationStatistics) -> dict[str, np.ndarray]:
    """Runs each layer's experts on what its router is given, one expert and one position after the other."""
    sent, norms, positions = np.zeros((2, 4)), np.zeros((2, 4)), 0
    model = statistics.model.base_model
    for batch in statistics.batches:
        counted = batch["attention_mask"].bool().flatten()
        given: list[torch.Tensor] = []
        hooks = [layer.mlp.register_forward_pre_hook(partial(take, given)) for layer in model.layers]
        with torch.no_grad():
            model(**{name: batch[name] for name in ("input_ids", "attention_mask")})
            for number, layer in enumerate(model.layers):
                states = given[number].flatten(0, 1)
                _, weights, chosen = layer.mlp.gate(states)
                for place in counted.nonzero().flatten().tolist():
                    for expert, weight in zip(chosen[place].tolist(), weights[place].tolist(), strict=True):
                        gate, up = (layer.mlp.experts.gate_up_proj[expert] @ states[place]).chunk(2)
                        output = layer.mlp.experts.down_proj[expert] @ (torch.nn.functional.silu(gate) * up)
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
    for layer in (scores[:4], kept[:4]), (scores[4:], kept[4:]):
        assert np.flatnonzero(~layer[1]).tolist() == [int(layer[0].argmin())]


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
