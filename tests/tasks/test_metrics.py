import math
from typing import Any

import evaluate
import numpy as np
import pytest
import scipy.stats
from datasets import Features, Value

from hf_mabprune.tasks import metrics
from hf_mabprune.tasks.metrics import load_metric, measure
from tests.seeds import moved

CLASSES = ("predictions", "references")
REFERENCES = [0, 0, 0, 1, 1, 2]
PREDICTIONS = [0, 0, 1, 1, 0, 2]


def value_of(name: str, num_labels: int, predictions: list[int], references: list[int]) -> float:
    metric = load_metric(name, CLASSES, num_labels)
    return measure(name, metric, {"predictions": predictions, "references": references})[name]


def test_accuracy() -> None:
    assert value_of("accuracy", 3, PREDICTIONS, REFERENCES) == pytest.approx(4 / 6)


def test_f1_of_three_classes_is_their_mean() -> None:
    """Class 0: 2/3 and 2/3; class 1: 1/2 and 1/2; class 2: 1."""
    assert value_of("f1", 3, PREDICTIONS, REFERENCES) == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)


def test_f1_of_two_classes_is_that_of_class_one() -> None:
    """Precision 1, recall 1/3."""
    assert value_of("f1", 2, [0, 1, 0, 0], [0, 1, 1, 1]) == pytest.approx(0.5)


def test_three_classes_stay_three_where_only_two_occur() -> None:
    """Precision and recall 1/3 and 1 for class 0, 1 and 1/3 for class 1; then 1/2 and 1 for class 0, none for 1."""
    assert value_of("f1", 3, [0, 1, 0, 0], [0, 1, 1, 1]) == pytest.approx((0.5 + 0.5) / 2)
    assert value_of("f1", 3, [0, 0], [0, 1]) == pytest.approx((2 / 3 + 0) / 2)


def test_matthews_correlation() -> None:
    """(2 * 1 - 1 * 1) / sqrt(3 * 2 * 2 * 3) with tp 2, tn 1, fp 1, fn 1 is 1/6."""
    assert value_of("matthews_correlation", 2, [1, 1, 0, 0, 1], [1, 1, 1, 0, 0]) == pytest.approx(1 / 6)
    assert value_of("matthews_correlation", 2, [1, 0], [0, 1]) == pytest.approx(-1)


def test_perplexity_weighs_positions_alike() -> None:
    metric = load_metric("perplexity", ("losses", "positions"), 2)
    inputs = {"losses": [math.log(2), math.log(8)], "positions": [3, 1]}
    assert measure("perplexity", metric, inputs) == {"perplexity": pytest.approx(2 ** ((3 + 3) / 4))}


def numbers(name: str, predictions: Any, references: Any) -> float:
    metric = load_metric(name, CLASSES, 1, predicts_classes=False)
    return measure(name, metric, {"predictions": predictions, "references": references})[name]


def test_pearson_and_spearman_against_scipy() -> None:
    rng = np.random.default_rng(moved(0))
    right = rng.normal(size=50)
    predicted = np.round(np.exp(right + 0.3 * rng.normal(size=50)), 1)  # with ties
    assert numbers("pearson", predicted, right) == pytest.approx(scipy.stats.pearsonr(predicted, right).statistic)
    assert numbers("spearman", predicted, right) == pytest.approx(scipy.stats.spearmanr(predicted, right).statistic)
    assert numbers("pearson", [1, 2, 3], [-2, -4, -6]) == pytest.approx(-1)
    assert numbers("spearman", [1, 2, 30], [0, 1, 2]) == pytest.approx(1)


def test_a_constant_correlates_with_nothing() -> None:
    assert numbers("pearson", [2.0, 2.0, 2.0], [1.0, 2.0, 3.0]) == 0
    assert numbers("spearman", [2.0, 2.0, 2.0], [1.0, 2.0, 3.0]) == 0


def test_mean_squared_error() -> None:
    assert numbers("mse", [1.0, 2.0], [0.0, 4.0]) == pytest.approx((1 + 4) / 2)


def test_of_several_outputs_correlations_are_the_mean() -> None:
    predicted, right = np.array([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]]), np.array([[1.0, 3.0], [2.0, 2.0], [3.0, 1.0]])
    assert numbers("pearson", predicted, right) == pytest.approx(0)
    assert numbers("pearson", predicted, predicted) == pytest.approx(1)


def test_metrics_of_classes_take_no_numbers() -> None:
    with pytest.raises(ValueError, match="metric 'f1' compares classes, this task predicts numbers; leave"):
        load_metric("f1", CLASSES, 1, predicts_classes=False)


def test_nothing_is_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", str(tmp_path))
    assert value_of("accuracy", 2, [0, 1], [0, 0]) == 0.5
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_metric_can_be_used_again() -> None:
    metric = load_metric("accuracy", CLASSES, 2)
    values = [measure("accuracy", metric, {"predictions": [1, 1], "references": [1, r]}) for r in (0, 1, 0)]
    assert [value["accuracy"] for value in values] == [0.5, 1.0, 0.5]


def test_a_metric_that_needs_other_inputs_is_refused() -> None:
    with pytest.raises(ValueError, match="metric 'perplexity' needs losses, positions, this task gives predictions"):
        load_metric("perplexity", CLASSES, 2)


def test_a_metric_that_cannot_be_reached_names_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(name: str, **options: Any) -> evaluate.EvaluationModule:
        raise ConnectionError("no network")

    monkeypatch.setattr(metrics.evaluate, "load", unreachable)
    with pytest.raises(ValueError, match=r"'acuracy' is not one of accuracy, .*Did you mean 'accuracy'.*no network"):
        load_metric("acuracy", CLASSES, 2)


class Several(evaluate.Metric):
    """Stands for a metric of the Hub that gives several numbers, and fails on empty data."""

    def _info(self) -> evaluate.MetricInfo:
        features = Features({"predictions": Value("int64"), "references": Value("int64")})
        return evaluate.MetricInfo(description="", citation="", features=features)

    def _compute(self, predictions: list[int], references: list[int]) -> dict[str, float]:
        if max(references) > 1:
            raise ValueError("binary only")
        return {"low": float(min(predictions)), "high": float(max(predictions))}


def test_other_names_go_to_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics.evaluate, "load", lambda name, **options: Several(**options))
    metric = load_metric("several", CLASSES, 2)
    assert metric.keep_in_memory
    inputs = {"predictions": [0, 1], "references": [1, 1], "losses": [1.0, 1.0]}
    assert measure("several", metric, inputs) == {"several.low": 0.0, "several.high": 1.0}
    with pytest.raises(ValueError, match="metric 'several' cannot be computed from predictions, references: binary"):
        measure("several", metric, {"predictions": [0], "references": [2]})
