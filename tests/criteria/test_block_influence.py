"""Block influence, which ranks whole layers alone."""

from pathlib import Path

import numpy as np
import pytest
import torch

from hf_mabprune.checks import check_settings
from hf_mabprune.criteria import CRITERIA, CalibrationStatistics
from tests.problems import arms_of, problem, settings_for


@pytest.mark.parametrize("model_type", ["bert", "llama"])
def test_scores_are_those_of_the_definition(model_type: str) -> None:
    model, task, batches, _ = problem(model_type)
    arms = arms_of(model, 16, batches, ["layer"])
    scores = CRITERIA.get("block_influence")().scores(CalibrationStatistics(model, arms, task, batches))
    cosines, states = [], []
    layer = model.base_model.get_submodule(str(arms.site[0]))
    layer.register_forward_hook(
        lambda _, given, made: states.extend([given[0], made[0] if isinstance(made, tuple) else made])
    )
    for batch in batches:
        with torch.no_grad():
            model(**{name: batch[name] for name in ("input_ids", "attention_mask")})
        counted = batch["attention_mask"].bool()
        given, made = (each[counted].double() for each in states[-2:])
        cosines += [float(x @ y / x.norm() / y.norm()) for x, y in zip(given, made, strict=True)]
    np.testing.assert_allclose(scores, [1 - np.mean(cosines)], rtol=1e-5)


@pytest.mark.parametrize("name", ["block_influence", "random", "taylor"])
def test_criteria_for_layers_give_finite_scores(name: str) -> None:
    model, task, batches, _ = problem("gpt2", n_layer=3)
    arms = arms_of(model, 16, batches, ["layer"])
    scores = CRITERIA.get(name)().scores(CalibrationStatistics(model, arms, task, batches))
    assert scores.shape == (2,) and np.isfinite(scores).all() and (scores > 0).all()


@pytest.mark.parametrize(("name", "target"), [("block_influence", {"neurons": 0.5}), ("magnitude", {"layers": 0.5})])
def test_a_criterion_that_cannot_rank_the_arms_is_refused(
    name: str, target: dict[str, float], tmp_path: Path, files: dict[str, str]
) -> None:
    settings = settings_for(tmp_path, files, "llama")
    changed = settings.model_dump() | {"prune": {"target": target}, "search": {"criterion": name}}
    with pytest.raises(ValueError, match=f"criterion {name} ranks arms of kind"):
        check_settings(type(settings).model_validate(changed))
