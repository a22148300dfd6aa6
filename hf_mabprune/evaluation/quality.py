"""What a model is worth and what it costs: loss, metrics, KL, parameters, MACs, measured latency.

Symbols: N examples of a split; B batch, T tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from numpy.typing import NDArray
from scipy.stats import bootstrap
from transformers import PreTrainedModel

from hf_mabprune.arms import KeepIndices
from hf_mabprune.effects.finished_layers import FinishedLayers
from hf_mabprune.effects.masking import keep_masks, masked
from hf_mabprune.evaluation.bounds import upper_mean, upper_share
from hf_mabprune.progress import over
from hf_mabprune.tasks.base import Task
from hf_mabprune.tasks.batch import Batch
from hf_mabprune.tasks.readout import Readout
from hf_mabprune.tasks.scores import Scores

Forward = Callable[[int, Batch], Readout]  # number of the batch in its split, batch
RESAMPLES = 1000


@dataclass(frozen=True)
class Evaluation:
    """One model on one split.

    Attributes:
        scores: Losses of each example, and the predictions and references at its positions.
        kl: [N], mean KL divergence of each example's outputs from the dense model's, in nats.
        metrics: name -> value.
        resampled: name -> values on resamples of the examples, [RESAMPLES]; the same resamples for all models on a
            split, so that two models can be compared in pairs. Empty where nobody asked.
    """

    scores: Scores
    kl: NDArray[np.float64]
    metrics: dict[str, float]
    resampled: dict[str, NDArray[np.float64]]

    @cached_property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """name -> 95% percentile bootstrap interval over examples."""
        return {name: percentiles(values) for name, values in self.resampled.items()}

    @property
    def loss(self) -> float:
        """Mean over all positions that count."""
        return float(np.average(self.scores.losses, weights=self.scores.positions))


def forward_of(model: PreTrainedModel, task: Task, batches: Sequence[Batch] = ()) -> Forward:
    """The plain forward pass.

    Args:
        batches: All that it will be asked for: where layers have to be brought in, they run on all of these now.
    """
    finished = FinishedLayers(model, task, batches)
    finished = finished.ahead() if batches else finished

    def forward(number: int, batch: Batch) -> Readout:
        with finished.skipped(number):
            return task.readout(model, batch)

    return forward


def masked_forward_of(model: PreTrainedModel, task: Task, keep: KeepIndices, batches: Sequence[Batch] = ()) -> Forward:
    """The same with everything masked that `keep` does not keep: the pruned model, without surgery."""
    with masked(model, masks=keep_masks(model, keep)):
        plain = forward_of(model, task, batches)

    def forward(number: int, batch: Batch) -> Readout:
        with masked(model, masks=keep_masks(model, keep)):
            return plain(number, batch)

    return forward


@torch.inference_mode()
def evaluate(
    forward: Forward,
    task: Task,
    batches: Sequence[Batch],
    accelerator: Accelerator,
    original: Forward | None = None,
    intervals: bool = True,
) -> Evaluation:
    """Runs a model over a split; the batches are dealt out over the processes of the launch.

    Where the data say nothing of what is right, the divergence from the dense model stands for the loss.

    Args:
        forward: The model.
        original: The dense model, for the KL divergence; None where `forward` is that model.
        intervals: Whether to resample the examples, which intervals take.
    """
    found = []
    own = range(accelerator.process_index, len(batches), accelerator.num_processes)
    for number in over(own, "forward passes"):
        batch = batches[number].to(accelerator.device)
        readout = forward(number, batch)
        scores = readout.scores(task.keeps_predictions)
        kl = np.zeros(len(readout.targets))
        if original is not None:
            kl = readout.divergence(original(number, batch)).double().cpu().numpy()
            scores = scores if task.has_loss else replace(scores, losses=kl)
        found.append((number, scores, kl))
    found = sorted(gather_object(found), key=lambda item: item[0])
    scores = Scores.concatenate([scores for _, scores, _ in found])
    resampled = resampled_metrics(task, scores) if intervals else {}
    return Evaluation(scores, np.concatenate([kl for *_, kl in found]), task.compute_metrics(scores), resampled)


def paired_difference(name: str, first: Evaluation, second: Evaluation) -> tuple[float, float, float]:
    """Compares a metric of two models on the same examples, which both were resampled on.

    Returns:
        Value of `first` minus that of `second`, and its 95% interval (paired percentile bootstrap over examples).
    """
    return first.metrics[name] - second.metrics[name], *percentiles(first.resampled[name] - second.resampled[name])


def paired_divergence(first: Evaluation, second: Evaluation) -> tuple[float, float, float]:
    """Compares the mean KL divergence of two models from the dense one, as `paired_difference` does a metric."""
    difference = first.kl - second.kl
    return float(difference.mean()), *percentiles(resample(lambda rows: difference[rows].mean(), len(difference)))


def changed_shares(scores: Scores, dense: Scores) -> NDArray[np.float64]:
    """Measures which part of the answers to each example are other classes than the dense model's, [N]; NaN where an
    example has no answers, or they are not kept."""
    with np.errstate(invalid="ignore"):
        return scores.by_example(scores.predicted != dense.predicted) / scores.answers


def changed_answers(scores: Scores, dense: Scores) -> tuple[float, float]:
    """Measures how many answers are other classes than the dense model's, on the same examples.

    Returns:
        Part of an example's answers, mean over the examples that have any, and its upper confidence bound.
    """
    shares = changed_shares(scores, dense)
    shares = shares[~np.isnan(shares)]
    one_each = bool((scores.answers == 1).all())
    return float(shares.mean()), float(upper_share(shares.sum(), len(shares))) if one_each else upper_mean(shares)


def resampled_metrics(task: Task, scores: Scores) -> dict[str, NDArray[np.float64]]:
    """Gives every metric on resamples of the examples, each with all of its answers: name -> [RESAMPLES]."""

    def values(name: str) -> NDArray[np.float64]:
        return resample(lambda rows: task.compute_metrics(scores.take(rows))[name], len(scores.losses))

    return {name: values(name) for name in task.compute_metrics(scores)}


def percentiles(resampled: NDArray[np.float64]) -> tuple[float, float]:
    """Gives the 95% percentile bootstrap interval of what resamples said."""
    with np.errstate(invalid="ignore"):  # between values that are not finite lies none that is
        low, high = np.percentile(resampled, [2.5, 97.5])
    return float(low), float(high)


def resample(statistic: Callable[[NDArray[np.int64]], float], examples: int) -> NDArray[np.float64]:
    """Draws [examples] row numbers with replacement, and says what a statistic of rows is of each draw, [RESAMPLES].

    The draws are the same for every statistic of as many examples.

    Raises:
        ValueError: For a single example, which says nothing about the others.
    """
    if examples < 2:
        raise ValueError(
            f"an interval takes at least two examples, got {examples}: widen splits.test or evaluation_examples"
        )
    with np.errstate(invalid="ignore"):
        return bootstrap(
            (np.arange(examples),),
            statistic,
            vectorized=False,
            n_resamples=RESAMPLES,
            method="percentile",
            rng=np.random.default_rng(0),
        ).bootstrap_distribution
