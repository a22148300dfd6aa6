"""What a model is worth and what it costs: loss, metrics, KL, parameters, MACs, measured latency.

Symbols: N examples of a split; B batch, T tokens.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from numpy.typing import NDArray
from scipy.stats import bootstrap
from torch import nn
from transformers import PreTrainedModel

from hf_mabprune.architectures import architecture_of
from hf_mabprune.arms import KeepIndices
from hf_mabprune.effects.masking import keep_masks, masked
from hf_mabprune.runtime import threads
from hf_mabprune.tasks.base import Batch, Task
from hf_mabprune.tasks.readout import Readout, Scores

Forward = Callable[[int, Batch], Readout]  # number of the batch in its split, batch
RESAMPLES = 1000


@dataclass(frozen=True)
class Evaluation:
    """One model on one split.

    Attributes:
        scores: Per-example losses, predictions and references.
        kl: [N], mean KL divergence of each example's outputs from the dense model's, in nats.
        metrics: name -> value.
        intervals: name -> 95% interval, bootstrapped over examples.
    """

    scores: Scores
    kl: NDArray[np.float64]
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]

    @property
    def loss(self) -> float:
        """Mean over all positions that count."""
        return float(np.average(self.scores.losses, weights=self.scores.positions))


def forward_of(model: PreTrainedModel, task: Task) -> Forward:
    """The plain forward pass."""
    return lambda _, batch: task.readout(model, batch)


def masked_forward_of(model: PreTrainedModel, task: Task, keep: KeepIndices) -> Forward:
    """The forward pass with everything masked that `keep` does not keep: the pruned model, without surgery."""

    def forward(number: int, batch: Batch) -> Readout:
        with masked(model, **keep_masks(model, keep)):
            return task.readout(model, batch)

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

    Args:
        forward: The model.
        original: The dense model, for the KL divergence; None where `forward` is that model.
        intervals: Whether to bootstrap them.
    """
    found = []
    for number in range(accelerator.process_index, len(batches), accelerator.num_processes):
        batch = {name: tensor.to(accelerator.device) for name, tensor in batches[number].items()}
        readout = forward(number, batch)
        kl = torch.zeros(len(readout.targets), dtype=torch.float64)
        if original is not None:
            kl = readout.divergence(original(number, batch)).double().cpu()
        found.append((number, readout.scores(), kl.numpy()))
    found = sorted(gather_object(found), key=lambda item: item[0])
    scores = Scores.concatenate([scores for _, scores, _ in found])
    bounds = _intervals(task, scores) if intervals else {}
    return Evaluation(scores, np.concatenate([kl for *_, kl in found]), task.compute_metrics(scores), bounds)


def paired_difference(task: Task, first: Scores, second: Scores, seed: int = 0) -> tuple[float, float, float]:
    """Main metric of `first` minus `second` on the same examples, with its 95% interval.

    Returns:
        Difference, lower and upper bound (paired percentile bootstrap over examples).
    """

    def difference(rows: NDArray[np.int64]) -> float:
        return _main_metric(task, first.take(rows)) - _main_metric(task, second.take(rows))

    low, high = bootstrap_interval(difference, len(first.losses), seed)
    return difference(np.arange(len(first.losses))), low, high


def _main_metric(task: Task, scores: Scores) -> float:
    return task.compute_metrics(scores)[task.main_metric]


def _intervals(task: Task, scores: Scores) -> dict[str, tuple[float, float]]:
    def interval(name: str) -> tuple[float, float]:
        return bootstrap_interval(lambda rows: task.compute_metrics(scores.take(rows))[name], len(scores.losses))

    return {name: interval(name) for name in task.compute_metrics(scores)}


def bootstrap_interval(
    statistic: Callable[[NDArray[np.int64]], float], examples: int, seed: int = 0
) -> tuple[float, float]:
    """95% percentile bootstrap interval of a statistic of rows, [examples] row numbers drawn with replacement.

    Raises:
        ValueError: For a single example, which says nothing about the others.
    """
    if examples < 2:
        raise ValueError(
            f"an interval takes at least two examples, got {examples}: widen splits.test or evaluation_examples"
        )
    interval = bootstrap(
        (np.arange(examples),),
        statistic,
        vectorized=False,
        n_resamples=RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def count_parameters(model: PreTrainedModel) -> dict[str, int]:
    """`parameters` of the whole model (tied ones once), `ffn_parameters` and `attention_parameters` of its sites."""
    counts = {"neuron": 0, "head": 0}
    for site in architecture_of(model).sites(model):
        for path in site.linears():
            counts[site.kind] += sum(p.numel() for p in model.base_model.get_submodule(path).parameters())
    total = sum(parameter.numel() for parameter in model.parameters())
    return {"parameters": total, "ffn_parameters": counts["neuron"], "attention_parameters": counts["head"]}


@torch.inference_mode()
def count_macs(model: PreTrainedModel, tokens: int, one_sequence: tuple[int, ...] = (1,)) -> int:
    """Multiply-accumulates of one forward pass over one sequence: all Linear modules, and the attention products.

    Attention is counted over the full T x T matrix, causal or not.

    Args:
        tokens: T.
        one_sequence: Shape of a batch of one sequence without its tokens, as the task has it.
    """
    macs = 0

    def count(module: nn.Linear, arguments: tuple[torch.Tensor, ...]) -> None:
        nonlocal macs
        positions = arguments[0].numel() // arguments[0].shape[-1]
        macs += positions * module.in_features * module.out_features

    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    hooks = [module.register_forward_pre_hook(count) for module in linears]
    try:
        ids = torch.ones(*one_sequence, tokens, dtype=torch.long, device=model.device)
        model(input_ids=ids, attention_mask=ids)
    finally:
        for hook in hooks:
            hook.remove()
    for site in architecture_of(model).sites(model):
        if site.kind == "head":
            macs += 2 * tokens * tokens * site.units * site.unit_size
    return macs


@torch.inference_mode()
def measure_latency(models: Sequence[PreTrainedModel], task: Task, batch: Batch, repeats: int = 15) -> list[float]:
    """Median milliseconds of one forward pass over a batch, the models taking turns so that noise hits them alike."""
    times: list[list[float]] = [[] for _ in models]
    with threads.fixed():
        for repeat in range(repeats + 2):
            for model, taken in zip(models, times, strict=True):
                inputs = {name: tensor.to(model.device) for name, tensor in batch.items()}
                start = time.perf_counter()
                task.readout(model, inputs)
                if model.device.type == "cuda":
                    torch.cuda.synchronize()
                if repeat >= 2:  # the first two warm up
                    taken.append(1000 * (time.perf_counter() - start))
    return [statistics.median(taken) for taken in times]
