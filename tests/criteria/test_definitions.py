"""Every criterion but the greedy ones against its definition, arm by arm, from statistics taken by hand."""

from collections.abc import Callable

import numpy as np
import pytest

from hf_mabprune.criteria import CRITERIA, CalibrationStatistics
from tests.criteria.by_hand import (
    HEAD_SIZE,
    MAKERS,
    batch_gradients,
    case,
    columns,
    gradients,
    inputs_of,
    per_arm,
    weight,
)


def magnitude(statistics: CalibrationStatistics) -> np.ndarray:
    return per_arm(statistics, lambda arm: np.linalg.norm(weight(statistics, arm)[:, columns(statistics, arm)]) ** 2)


def magnitude_with_inputs(statistics: CalibrationStatistics) -> np.ndarray:
    model_type = statistics.model.config.model_type

    def value(arm: int) -> float:
        kind = str(statistics.arms.kind[arm])
        norms = [np.linalg.norm(weight(statistics, arm)[:, columns(statistics, arm)])]
        for path in MAKERS[model_type, kind]:
            rows = columns(statistics, arm)
            if path.endswith(("k_proj", "v_proj")):  # two query heads share each of the two key-value heads
                group = int(statistics.arms.index[arm])
                rows = slice(group * HEAD_SIZE, (group + 1) * HEAD_SIZE)
            linear = statistics.model.base_model.get_submodule(path.format(statistics.arms.layer[arm]))
            norms.append(np.linalg.norm(linear.weight.detach().numpy()[rows]))  # type: ignore[operator]
        return np.prod(norms) ** (2 / len(norms))

    return per_arm(statistics, value)


def taylor(statistics: CalibrationStatistics) -> np.ndarray:
    return np.abs(batch_gradients(statistics).mean(1))


def fisher(statistics: CalibrationStatistics) -> np.ndarray:
    return (batch_gradients(statistics) ** 2).sum(1)


def fisher_of_examples(statistics: CalibrationStatistics) -> np.ndarray:
    return (gradients(statistics) ** 2).sum(1)


def activation_variation(statistics: CalibrationStatistics) -> np.ndarray:
    return per_arm(
        statistics,
        lambda arm: np.concatenate(inputs_of(statistics, arm))[:, columns(statistics, arm)].var(0).sum(),
    )


def wanda_sp(statistics: CalibrationStatistics) -> np.ndarray:
    def value(arm: int) -> float:
        hidden = np.concatenate(inputs_of(statistics, arm))
        metric = np.abs(weight(statistics, arm)) * np.linalg.norm(hidden, axis=0) / np.sqrt(len(hidden))
        return metric.mean(0)[columns(statistics, arm)].sum()

    return per_arm(statistics, value)


def flap(statistics: CalibrationStatistics, head_power: int = 1) -> np.ndarray:
    def value(arm: int) -> float:
        metric = np.concatenate(inputs_of(statistics, arm)).var(0) * (weight(statistics, arm) ** 2).sum(0)
        metric = metric**head_power if statistics.arms.kind[arm] == "head" else metric
        spread = np.sqrt(((metric - metric.mean()) ** 2).sum() / (len(metric) - 1))
        return ((metric - metric.mean()) / spread)[columns(statistics, arm)].mean()

    return per_arm(statistics, value)


def flap_as_released(statistics: CalibrationStatistics) -> np.ndarray:
    return flap(statistics, head_power=2)


def minitron(statistics: CalibrationStatistics) -> np.ndarray:
    def value(arm: int) -> float:
        means = np.stack([np.abs(hidden).mean(0) for hidden in inputs_of(statistics, arm)])  # [N, C]
        norms = np.linalg.norm(means, axis=0)
        return np.linalg.norm(norms[columns(statistics, arm)]) ** 2

    return per_arm(statistics, value)


DEFINITIONS: list[tuple[str, dict[str, bool], Callable[[CalibrationStatistics], np.ndarray]]] = [
    ("magnitude", {}, magnitude),
    ("magnitude", {"inputs": True}, magnitude_with_inputs),
    ("taylor", {}, taylor),
    ("fisher", {}, fisher),
    ("fisher", {"per_example": True}, fisher_of_examples),
    ("fisher_rearranged", {}, fisher),
    ("activation_variation", {}, activation_variation),
    ("wanda_sp", {}, wanda_sp),
    ("flap", {}, flap),
    ("flap", {"square_heads": True}, flap_as_released),
    ("minitron", {}, minitron),
]


@pytest.mark.parametrize("block", [1, 20])  # 20: the last of the 48 neurons are a smaller block
@pytest.mark.parametrize("model_type", ["bert", "llama"])
@pytest.mark.parametrize(
    ("name", "options", "definition"), DEFINITIONS, ids=lambda part: getattr(part, "__name__", None)
)
def test_scores_are_as_defined(
    name: str,
    options: dict[str, bool],
    definition: Callable[[CalibrationStatistics], np.ndarray],
    model_type: str,
    block: int,
) -> None:
    statistics = case(model_type, block)
    found, expected = CRITERIA.get(name)(**options).scores(statistics), definition(statistics)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("model_type", ["bert", "llama"])
def test_taylor_is_the_sum_of_weight_times_gradient_too(model_type: str) -> None:
    statistics = case(model_type, 20)
    found = np.zeros(len(statistics.arms))
    for batch in statistics.batches:
        statistics.model.zero_grad()
        readout = statistics.task.readout(statistics.model, batch)
        readout.losses().mean().backward()
        for site, rows in statistics.sites:
            linear = statistics.model.base_model.get_submodule(site.name)
            product = (linear.weight * linear.weight.grad).sum(0).detach().numpy()  # type: ignore[operator]
            found[rows] += [product[columns(statistics, int(arm))].sum() for arm in rows]
    statistics.model.zero_grad()
    scores, expected = CRITERIA.get("taylor")().scores(statistics), np.abs(found / 3)
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-6 * expected.max())


def test_random_follows_the_seed() -> None:
    first, again = (CRITERIA.get("random")().scores(case("bert", 20)) for _ in range(2))
    other = CalibrationStatistics(
        *(getattr(case("bert", 20), name) for name in ("model", "arms", "task", "batches")), seed=6
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, CRITERIA.get("random")().scores(other))
    assert first.min() > 0 and first.max() <= 1
