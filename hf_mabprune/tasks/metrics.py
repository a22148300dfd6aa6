"""Metrics that need no network, as `evaluate.Metric`s, and the way to those on the Hub.

All are kept in memory: every process computes the metric of the whole split, and nothing is written or locked.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import evaluate
import numpy as np
from datasets import Features, Value
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata
from sklearn.metrics import f1_score, matthews_corrcoef

from hf_mabprune.registry import nearest
from hf_mabprune.tasks.entities import common_spans, read_tags

CLASSES = Features({"predictions": Value("int64"), "references": Value("int64")})
NUMBERS = Features({"predictions": Value("float64"), "references": Value("float64")})
SEVERAL = Features({**CLASSES, "answers": Value("int64")})  # how many predictions are of each example
LOSSES = Features({"losses": Value("float64"), "positions": Value("int64")})
RANKS = Features({"ranks": Value("float64")})


class OfflineMetric(evaluate.Metric):
    """A metric that comes with this package; its `_compute` takes the features that `inputs` names."""

    greater_is_better: ClassVar[bool] = True
    inputs: ClassVar[Features] = CLASSES
    class_names: Sequence[str] = ()  # of the model's head

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(description=type(self).__doc__ or "", citation="", features=self.inputs)


class Accuracy(OfflineMetric):
    """Fraction of predicted classes that are right: of examples, or of tokens where a class is predicted for each."""

    def _compute(self, predictions: list[int], references: list[int]) -> dict[str, float]:
        # scikit-learn's checks of its input take 100 times as long, and a bootstrap makes thousands of calls.
        return {"accuracy": float(np.mean(np.equal(references, predictions)))}


class F1(OfflineMetric):
    """Harmonic mean of precision and recall: of class 1 in the configuration "binary", else the mean over classes."""

    def _compute(self, predictions: list[int], references: list[int]) -> dict[str, float]:
        average = "binary" if self.config_name == "binary" else "macro"
        return {"f1": float(f1_score(references, predictions, average=average, zero_division=0.0))}


class MicroF1(OfflineMetric):
    """F1 of several labels that an example may have, over all examples and labels at once; 1 says that it has one."""

    inputs = SEVERAL

    def _compute(self, predictions: NDArray[Any], references: NDArray[Any], answers: NDArray[Any]) -> dict[str, float]:
        predicted, right = predictions == 1, references == 1
        return {"micro_f1": _f1(predicted.sum(), right.sum(), (predicted & right).sum())}


class MacroF1(OfflineMetric):
    """F1 of each of several labels that an example may have, mean over the labels; 0 for one that nothing has."""

    inputs = SEVERAL

    def _compute(self, predictions: NDArray[Any], references: NDArray[Any], answers: NDArray[Any]) -> dict[str, float]:
        predicted, right = (values.reshape(len(answers), -1) == 1 for values in (predictions, references))
        counts = zip(predicted.sum(0), right.sum(0), (predicted & right).sum(0), strict=True)
        return {"macro_f1": float(np.mean([_f1(*label) for label in counts]))}


class EntityF1(OfflineMetric):
    """F1 of marked spans of words, which must have the right kind, first and last word; of all kinds at once.

    The overall F1 of seqeval by default, which counts as conlleval does; see `entities.py`.
    """

    inputs = SEVERAL

    def _compute(self, predictions: NDArray[Any], references: NDArray[Any], answers: NDArray[Any]) -> dict[str, float]:
        return {"entity_f1": _f1(*common_spans(predictions, references, answers, read_tags(self.class_names)))}


class MatthewsCorrelation(OfflineMetric):
    """Correlation of predicted and right classes, from -1 to 1 (Matthews, 1975)."""

    def _compute(self, predictions: list[int], references: list[int]) -> dict[str, float]:
        return {"matthews_correlation": float(matthews_corrcoef(references, predictions))}


class Perplexity(OfflineMetric):
    """exp(total loss / total positions), from the mean loss in nats and the number of positions of each example."""

    greater_is_better = False
    inputs = LOSSES

    def _compute(self, losses: list[float], positions: list[int]) -> dict[str, float]:
        with np.errstate(over="ignore"):  # infinite, for a loss of more than 709 nats
            return {"perplexity": float(np.exp(np.average(losses, weights=positions)))}


class ExactMatch(OfflineMetric):
    """Fraction of examples whose answer is right, in all of its positions that count."""

    inputs = Features({"correct": Value("float64")})

    def _compute(self, correct: list[float]) -> dict[str, float]:
        return {"exact_match": float(np.mean(np.equal(correct, 1)))}


class WordF1(OfflineMetric):
    """Mean over examples of how far the words of an answer and of the right one overlap, as SQuAD measures it."""

    inputs = Features({"overlap": Value("float64")})

    def _compute(self, overlap: list[float]) -> dict[str, float]:
        return {"word_f1": float(np.mean(overlap))}


class TokenAccuracy(OfflineMetric):
    """Fraction of all counted positions that are right."""

    inputs = Features({"correct": Value("float64"), "positions": Value("int64")})

    def _compute(self, correct: list[float], positions: list[int]) -> dict[str, float]:
        return {"token_accuracy": float(np.average(correct, weights=positions))}


class NDCG(OfflineMetric):
    """Normalised discounted cumulative gain, with one right candidate of rank r a query: the mean of 1 / log2(1 + r).

    Järvelin and Kekäläinen, ACM TOIS 20 (2002), section 2; the ideal gain is 1.
    """

    inputs = RANKS

    def _compute(self, ranks: ArrayLike) -> dict[str, float]:
        return {"ndcg": float(np.mean(1 / np.log2(1 + np.asarray(ranks))))}


class MeanReciprocalRank(OfflineMetric):
    """Mean over queries of 1 / r, r being the rank of the right candidate."""

    inputs = RANKS

    def _compute(self, ranks: ArrayLike) -> dict[str, float]:
        return {"mrr": float(np.mean(1 / np.asarray(ranks)))}


class Pearson(OfflineMetric):
    """Linear correlation of predicted and right numbers, from -1 to 1; 0 where either are all the same.

    Of several outputs, the mean over them.
    """

    inputs = NUMBERS

    def _compute(self, predictions: ArrayLike, references: ArrayLike) -> dict[str, float]:
        return {"pearson": _correlation(predictions, references)}


class Spearman(OfflineMetric):
    """Linear correlation of the ranks of predicted and right numbers, ties sharing their mean rank; as Pearson."""

    inputs = NUMBERS

    def _compute(self, predictions: ArrayLike, references: ArrayLike) -> dict[str, float]:
        return {"spearman": _correlation(rankdata(predictions, axis=0), rankdata(references, axis=0))}


class MeanSquaredError(OfflineMetric):
    """Mean of (prediction - reference)^2."""

    greater_is_better = False
    inputs = NUMBERS

    def _compute(self, predictions: ArrayLike, references: ArrayLike) -> dict[str, float]:
        return {"mse": float(np.mean(np.square(np.subtract(predictions, references))))}


class R2(OfflineMetric):
    """Coefficient of determination, 1 - sum of squared errors / sum of squares about the mean of the right numbers.

    Of several outputs, the mean over them; where the right numbers are all the same, 1 if all are met, else 0.
    """

    inputs = NUMBERS

    def _compute(self, predictions: ArrayLike, references: ArrayLike) -> dict[str, float]:
        predicted, right = (np.asarray(values, dtype=np.float64) for values in (predictions, references))
        missed, spread = ((right - each) ** 2 for each in (predicted, right.mean(axis=0)))
        missed, spread = missed.sum(axis=0), spread.sum(axis=0)
        shares = np.where(spread == 0, missed > 0, missed / np.where(spread == 0, 1, spread))
        return {"r2": float(np.mean(1 - shares))}


class Cosine(OfflineMetric):
    """Mean cosine of embeddings with the dense model's, from their distances 1 - cosine."""

    inputs = Features({"distances": Value("float64")})

    def _compute(self, distances: list[float]) -> dict[str, float]:
        return {"cosine": 1 - float(np.mean(distances))}


def _f1(predicted: int, right: int, both: int) -> float:
    """Gives the harmonic mean of precision and recall; 0 where nothing is predicted and nothing there."""
    return float(2 * both / max(1, predicted + right))


def _correlation(predictions: ArrayLike, references: ArrayLike) -> float:
    """Measures Pearson's r of two columns, [N] or [N, outputs]: the mean over outputs, 0 where one is constant."""
    x, y = (np.asarray(values, dtype=np.float64) for values in (predictions, references))
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    spread = np.sqrt((x**2).sum(axis=0) * (y**2).sum(axis=0))
    return float(np.mean((x * y).sum(axis=0) / np.where(spread == 0, 1, spread)))


METRICS: dict[str, type[OfflineMetric]] = {
    "accuracy": Accuracy,
    "cosine": Cosine,
    "entity_f1": EntityF1,
    "exact_match": ExactMatch,
    "f1": F1,
    "macro_f1": MacroF1,
    "matthews_correlation": MatthewsCorrelation,
    "micro_f1": MicroF1,
    "mrr": MeanReciprocalRank,
    "mse": MeanSquaredError,
    "ndcg": NDCG,
    "pearson": Pearson,
    "perplexity": Perplexity,
    "r2": R2,
    "spearman": Spearman,
    "token_accuracy": TokenAccuracy,
    "word_f1": WordF1,
}


def load_metric(
    name: str,
    inputs: Iterable[str],
    num_labels: int,
    predicts_classes: bool = True,
    class_names: Sequence[str] = (),
) -> evaluate.EvaluationModule:
    """Loads the metric of that name: one of ours, else `evaluate.load(name)`.

    Args:
        name: Name such as "accuracy", or of a metric on the Hub such as "precision".
        inputs: Names of what the task can give a metric, e.g. predictions and references.
        num_labels: Number of classes of the head; F1 is that of class 1 for two classes and macro for more.
        predicts_classes: Whether predictions and references are classes; else they are numbers.
        class_names: Names of the classes in their order, for a metric that reads them.

    Raises:
        ValueError: If the metric cannot be found, or needs inputs that the task does not have.
    """
    if name in METRICS:
        metric = METRICS[name](config_name="binary" if num_labels == 2 else "multiclass", keep_in_memory=True)
        metric.class_names = class_names
    else:
        metric = _from_hub(name)
    features = metric.features[0] if isinstance(metric.features, list) else metric.features
    if missing := set(features) - set(inputs):
        raise ValueError(
            f"metric '{name}' needs {', '.join(sorted(missing))}, this task gives {', '.join(inputs)}; "
            "leave task.metrics empty for the task's own"
        )
    if not predicts_classes and "int" in str(getattr(features.get("predictions"), "dtype", "")):
        raise ValueError(
            f"metric '{name}' compares classes, this task predicts numbers; "
            "leave task.metrics empty for the task's own"
        )
    return metric


def _from_hub(name: str) -> evaluate.EvaluationModule:
    try:
        return evaluate.load(name, keep_in_memory=True)
    except (OSError, ImportError) as error:
        raise ValueError(
            f"metric '{name}' is not one of {', '.join(METRICS)}.{nearest(name, METRICS)} "
            f"It could not be loaded from the Hub either: {error}"
        ) from error


def measure(name: str, metric: evaluate.EvaluationModule, inputs: Mapping[str, Any]) -> dict[str, float]:
    """Computes one metric of a whole split: {name: value}, or {name.key: value} for each of several.

    Args:
        name: Name of the metric.
        metric: Metric, from `load_metric`.
        inputs: What the task gives metrics, by its name: [N], or [M] for M predictions, or [N, outputs].

    Raises:
        ValueError: If the metric fails, or gives something other than numbers.
    """
    features = metric.features[0] if isinstance(metric.features, list) else metric.features
    try:
        # Ours take arrays as they are; the detour over Arrow that `compute` makes would cost a bootstrap minutes.
        compute = metric._compute if isinstance(metric, OfflineMetric) else metric.compute
        values = compute(**{feature: inputs[feature] for feature in features})
        numbers = {key: float(value) for key, value in values.items()}
    except (TypeError, ValueError) as error:
        raise ValueError(f"metric '{name}' cannot be computed from {', '.join(features)}: {error}") from error
    if len(numbers) == 1:
        return {name: next(iter(numbers.values()))}
    return {f"{name}.{key}": value for key, value in numbers.items()}
