"""Small cases whose statistics are taken by hand: own hooks, own gates, one example at a time, no code of criteria."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import nn

from hf_mabprune.config import TargetConfig
from hf_mabprune.criteria import CalibrationStatistics
from hf_mabprune.selection.plan import Plan
from hf_mabprune.selection.target import make_plan
from hf_mabprune.tasks.batch import Batch
from tests.problems import arms_of, limits, problem

HEAD_SIZE = 8
MAKERS = {
    ("bert", "neuron"): ["encoder.layer.{}.intermediate.dense"],
    ("bert", "head"): [f"encoder.layer.{{}}.attention.self.{name}" for name in ("query", "key", "value")],
    ("llama", "neuron"): ["layers.{}.mlp.gate_proj", "layers.{}.mlp.up_proj"],
    ("llama", "head"): [f"layers.{{}}.self_attn.{name}_proj" for name in "qkv"],
}


def fresh(model_type: str, block: int) -> CalibrationStatistics:
    """A tiny model in double precision, its arms in blocks of neurons, and three batches, the last one smaller."""
    model, task, batches, arms = problem(model_type)
    model.double()
    if any(arms.kind == "expert"):
        model.set_experts_implementation("eager")  # grouped products are not for double precision
    batches[2] = batches[2].rows(slice(3))
    arms = arms_of(model, block, batches)
    return CalibrationStatistics(model, arms, task, batches, seed=5)


@lru_cache
def case(model_type: str, block: int) -> CalibrationStatistics:
    """The same, with statistics that are kept from test to test."""
    return fresh(model_type, block)


def projection(statistics: CalibrationStatistics, arm: int) -> nn.Linear:
    path = str(statistics.arms.site[arm])
    return statistics.model.base_model.get_submodule(path)  # type: ignore[return-value]


def weight(statistics: CalibrationStatistics, arm: int) -> np.ndarray:
    """[D, C], the output projection that an arm belongs to."""
    return projection(statistics, arm).weight.detach().numpy()


def columns(statistics: CalibrationStatistics, arm: int) -> slice:
    """Of the output projection."""
    size = HEAD_SIZE if statistics.arms.kind[arm] == "head" else 1
    return slice(int(statistics.arms.start[arm]) * size, int(statistics.arms.stop[arm]) * size)


def per_arm(statistics: CalibrationStatistics, value: Callable[[int], float]) -> np.ndarray:
    """[K]."""
    return np.array([value(arm) for arm in range(len(statistics.arms))])


def examples(statistics: CalibrationStatistics) -> Iterator[Batch]:
    """One example at a time, without padding."""
    for batch in statistics.batches:
        for row in range(len(batch["input_ids"])):
            length = int(batch["attention_mask"][row].sum())
            one = batch.rows(slice(row, row + 1))
            yield Batch((name, tensor[:, :length] if tensor.dim() > 1 else tensor) for name, tensor in one.items())


@contextmanager
def hooks(statistics: CalibrationStatistics, hook: Callable[[str, torch.Tensor], Any]) -> Iterator[None]:
    """Runs `hook(site, input)` before every output projection; what it returns replaces the input."""
    with ExitStack() as stack:
        for name, rows in statistics.arms.groups():

            def run(_: nn.Module, arguments: Any, site: str = name) -> Any:
                return hook(site, arguments[0])

            stack.callback(projection(statistics, int(rows[0])).register_forward_pre_hook(run).remove)
        yield


def loss_of(statistics: CalibrationStatistics, example: Batch) -> torch.Tensor:
    """Mean cross-entropy of one example."""
    logits = statistics.model(input_ids=example["input_ids"], attention_mask=example["attention_mask"]).logits[0]
    if statistics.model.config.model_type == "llama":
        return torch.nn.functional.cross_entropy(logits[:-1], example["labels"][0, 1:])
    return torch.nn.functional.cross_entropy(logits[None], example["labels"])


@lru_cache
def inputs(statistics: CalibrationStatistics) -> dict[str, list[np.ndarray]]:
    """Site -> [T, C] for each example."""
    seen: dict[str, list[np.ndarray]] = {}
    with torch.no_grad(), hooks(statistics, lambda site, h: seen.setdefault(site, []).append(h[0].numpy())):
        for example in examples(statistics):
            loss_of(statistics, example)
    return seen


def inputs_of(statistics: CalibrationStatistics, arm: int) -> list[np.ndarray]:
    return inputs(statistics)[str(statistics.arms.site[arm])]


@lru_cache
def gradients(statistics: CalibrationStatistics) -> np.ndarray:
    """[K, N], of each example's loss with respect to the gates of the arms."""
    found = []
    for example in examples(statistics):
        gates: dict[str, torch.Tensor] = {}

        def gated(site: str, h: torch.Tensor, gates: dict = gates) -> torch.Tensor:
            gates[site] = torch.ones(h.shape[-1], dtype=h.dtype, requires_grad=True)
            return h * gates[site]

        with hooks(statistics, gated):
            loss = loss_of(statistics, example)
        slopes = dict(zip(gates, torch.autograd.grad(loss, list(gates.values())), strict=True))
        arms = statistics.arms
        of_arm = [slopes[str(arms.site[arm])][columns(statistics, arm)] for arm in range(len(arms))]
        found.append([float(slope.sum()) for slope in of_arm])
    return np.array(found).T


def batch_gradients(statistics: CalibrationStatistics) -> np.ndarray:
    """[K, 3], of the mean losses of the batches, which have 4, 4 and 3 examples."""
    each = gradients(statistics)
    return np.stack([each[:, :4].mean(1), each[:, 4:8].mean(1), each[:, 8:].mean(1)], axis=1)


def error_without(weight: np.ndarray, rows: np.ndarray, ridge: float, gone: list[int]) -> float:
    """min over W' without the columns `gone` of mean norm((W - W') h)^2 + ridge norm(W - W')^2."""
    seen = np.concatenate([rows / np.sqrt(len(rows)), np.sqrt(ridge) * np.eye(rows.shape[1])])
    stay = np.setdiff1d(np.arange(rows.shape[1]), gone)
    target = seen @ weight.T
    refitted = np.linalg.lstsq(seen[:, stay], target, rcond=None)[0]
    return float(((target - seen[:, stay] @ refitted) ** 2).sum())


def greedy(weight: np.ndarray, rows: np.ndarray, ridge: float, size: int) -> tuple[list[int], list[float]]:
    """Order and increases, every candidate's error solved for."""
    gone: list[int] = []
    order: list[int] = []
    increases: list[float] = []
    now = 0.0
    for _ in range(weight.shape[1] // size):
        errors = {
            block: error_without(weight, rows, ridge, [*gone, *range(block * size, (block + 1) * size)])
            for block in range(weight.shape[1] // size)
            if block not in order
        }
        best = min(errors, key=lambda block: errors[block])
        gone += range(best * size, (best + 1) * size)
        order.append(best)
        increases.append(errors[best] - now)
        now = errors[best]
    return order, increases


def plan_of(statistics: CalibrationStatistics, target: dict[str, float], layout: str) -> Plan:
    arms = statistics.arms
    totals = {"parameters": int(arms.parameters.sum()), "macs": int(arms.macs.sum())}
    return make_plan(arms, TargetConfig(**target), totals, layout, limits(arms, 16, layout=layout))
