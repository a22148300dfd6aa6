"""Statistics against those taken by hand; that nothing is computed before it is needed, or twice."""

import numpy as np
import pytest

from hf_mabprune.criteria import CRITERIA, CalibrationStatistics
from tests.criteria import by_hand
from tests.problems import arms_of


@pytest.mark.parametrize("block", [1, 20])
@pytest.mark.parametrize("model_type", ["bert", "llama"])
def test_gradients_are_those_of_gates_one_example_at_a_time(model_type: str, block: int) -> None:
    statistics = by_hand.case(model_type, block)
    expected = by_hand.gradients(statistics)
    assert statistics.example_gradients.shape == expected.shape == (len(statistics.arms), 11)
    np.testing.assert_allclose(statistics.example_gradients, expected, atol=1e-8)
    np.testing.assert_allclose(statistics.gradients, by_hand.batch_gradients(statistics), atol=1e-8)


def test_statistics_are_taken_when_needed_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    statistics = by_hand.fresh("bert", 16)
    CRITERIA.get("magnitude")().scores(statistics)
    assert not {"moments", "magnitudes", "example_gradients"} & vars(statistics).keys()
    CRITERIA.get("flap")().scores(statistics)
    CRITERIA.get("taylor")().scores(statistics)
    assert {"moments", "example_gradients"} <= vars(statistics).keys()
    monkeypatch.setattr(type(statistics.model), "forward", lambda *_, **__: pytest.fail("computed again"))
    for name in ("wanda_sp", "activation_variation", "obs", "fisher", "fisher_rearranged"):
        CRITERIA.get(name)().scores(statistics)


def test_arms_of_one_kind_are_enough() -> None:
    both = by_hand.case("llama", 16)
    heads = arms_of(both.model, 16, both.batches, ["head"])
    statistics = CalibrationStatistics(both.model, heads, both.task, both.batches, both.seed)
    for name in set(CRITERIA.names()) - {"random"}:
        criterion = CRITERIA.get(name)()
        if not criterion.ranks(["head"]):
            continue
        expected = criterion.scores(both)[both.arms.kind == "head"]
        np.testing.assert_allclose(criterion.scores(statistics), expected, rtol=1e-7)
