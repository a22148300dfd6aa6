"""Time as a target: from what was measured to what goes with each arm, and what a run does with that."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from transformers import PreTrainedModel

from hf_mabprune.architectures import architecture_of
from hf_mabprune.arms import LAYER, ArmTable
from hf_mabprune.config import LatencyTarget, PruningConfig
from hf_mabprune.pipeline import prune_from_config
from hf_mabprune.quantities import latency, timing
from hf_mabprune.quantities.latency import gone_at, latency_of
from hf_mabprune.quantities.timing import check_timing, passes
from hf_mabprune.selection.target import Quantity, make_plan
from tests.problems import QUICK, arms_of, limits, problem, settings_for, whole
from tests.tiny_models import head_of, tiny_model

ALONE = Accelerator(cpu=True)
PARTS = {"neuron": 2.0, "head": 5.0, "rest": 10.0}  # milliseconds of a neuron, of a head, and of the rest


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where tables are kept."""
    monkeypatch.setattr(latency, "HF_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Times of models that are known, in the place of what a busy machine says; a list of what was asked for."""
    asked: list[float] = []

    class Known:
        def __init__(self, model: PreTrainedModel, *_: Any) -> None:
            sites = architecture_of(model).sites(model, empty=True)
            self.time = PARTS["rest"] + sum(PARTS[site.kind] * site.units for site in sites)

        def __enter__(self) -> "Known":
            asked.append(self.time)
            return self

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(latency, "passes", Known)
    monkeypatch.setattr(latency, "undisturbed", lambda one, other: (one.time, other.time))
    monkeypatch.setattr(latency, "ratio", lambda one, other, _: other.time / one.time)
    return asked


def measured(model: PreTrainedModel, arms: ArmTable, **prune: Any) -> Quantity:
    """What a pass takes, and what goes of it with each arm."""
    settings = PruningConfig.model_validate({"target": {"latency": 0.2}, "arms": arms.kinds(), **prune})
    return latency_of(model, arms, settings, {"input_ids": torch.zeros(1, 4, dtype=torch.long)}, None, ALONE)


def test_what_was_measured_never_rises_as_units_go() -> None:
    widths = np.array([0, 4, 8, 12, 16])
    gone = gone_at(widths, 100.0, [(12, 96.0), (8, 97.0), (4, 80.0)], sites=2)
    assert gone.tolist() == [10.0, 10.0, 1.75, 1.75, 0.0], "the mean of what is out of order; between, a straight line"
    assert gone_at(widths, 100.0, [(8, 120.0)], sites=2).tolist() == [0.0] * 5, "smaller is not slower"
    assert gone_at(widths, 100.0, [(8, 90.0)], sites=2).tolist() == [5.0, 5.0, 5.0, 2.5, 0.0]


@pytest.mark.parametrize("model_type", ["bert", "llama", "gpt2"])
def test_the_plan_removes_the_time_that_a_target_asks_for(model_type: str, clock: list[float]) -> None:
    model, _, batches, _ = problem(model_type)
    arms = arms_of(model, 8, batches, ["neuron", "head"])
    quantity = measured(model, arms)
    settings = PruningConfig.model_validate({"target": {"latency": 0.3}})
    plan = make_plan(arms, settings.target, {}, "per_layer", limits(arms), {"latency": quantity})
    (budget,), kinds = plan.budgets, arms.kind
    scores = np.random.default_rng(0).random(len(arms))
    kept, removed = plan.choose(scores, whole(arms))
    milliseconds = {kind: PARTS[kind] * arms.units[kinds == kind].sum() for kind in ("neuron", "head")}
    assert quantity.total == clock[0] == PARTS["rest"] + sum(milliseconds.values())
    left = quantity.total - sum(PARTS[str(kinds[arm])] * arms.units[arm] for arm in removed)
    assert plan.left(budget, kept) == pytest.approx(left)
    largest = max(PARTS[str(kind)] * units for kind, units in zip(kinds, arms.units, strict=True))
    assert 0.7 * quantity.total - largest < left <= 0.7 * quantity.total


def test_steps_of_a_table_are_counted_where_they_are() -> None:
    *_, arms = problem("bert")
    site, rows = arms.groups()[0]
    steps = np.array([30.0, 30.0, 0.0, 0.0])  # three arms, of which only the second one to go spares time
    line = 10.0
    besides = {site: steps - line * np.arange(3, -1, -1)}
    cost = np.where(np.isin(np.arange(len(arms)), rows), line, 1e-6)
    quantity = Quantity(100.0, cost, besides=besides, unit="ms")
    target = PruningConfig.model_validate({"target": {"latency": 0.2}}).target
    assert len(rows) == 3
    plan = make_plan(arms, target, {}, "per_layer", limits(arms), {"latency": quantity})
    kept, removed = plan.choose(np.where(cost == line, 1.0, 0.0), whole(arms))
    assert len(removed) == 2 and plan.gone(plan.budgets[0], kept) == pytest.approx(30.0)


def test_blocks_and_layers_that_may_go_whole_are_measured_without_them(clock: list[float]) -> None:
    model, _, batches, _ = problem("llama")
    arms = arms_of(model, 16, batches, ["neuron"])
    all_gone = PARTS["rest"] + PARTS["head"] * 8
    measured(model, arms, min_neurons=0)
    assert min(clock) == all_gone
    clock.clear()
    measured(model, arms_of(model, 16, batches, [LAYER]))
    assert min(clock) == PARTS["rest"] + PARTS["head"] * 4 + PARTS["neuron"] * 48, "the first layer stays"


def test_a_table_is_read_where_model_machine_and_conditions_are_the_same(clock: list[float], home: Path) -> None:
    model, _, _, arms = problem("bert")
    first = measured(model, arms)
    times = len(clock)
    assert times > 5 and len(list(home.rglob("*.json"))) == 1
    assert np.array_equal(measured(model, arms).cost, first.cost) and len(clock) == times
    measured(tiny_model("bert", head_of("bert"), num_hidden_layers=3), arms)
    assert len(clock) > times, "another model"
    (table, *_), times = sorted(home.rglob("*.json")), len(clock)
    for damaged in ("{", '{"dense": -1, "sites": {}}', '{"dense": 1, "sites": {"a": [["b", 1]]}}'):
        for table in home.rglob("*.json"):
            table.write_text(damaged)
        assert measured(model, arms).total == first.total and len(clock) > times
        times = len(clock)


@pytest.mark.parametrize(
    ("model_type", "asked", "message"),
    [
        ("t5", {}, "latency is for encoders and decoders, and t5 is both: set target.macs instead"),
        ("bert", {"phase": "decode"}, "phase decode is for decoders, and bert is none: leave it out"),
        ("vit", {"length": 8}, "length is for token ids, and vit reads pixel_values"),
        ("llama", {"engine": "onnxruntime"}, "engine onnxruntime is for text encoders, got llama"),
        (
            "bert",
            {"engine": "onnxruntime", "dtype": "bfloat16"},
            "timed in float32 on the CPU, got bfloat16 on cpu",
        ),
    ],
)
def test_what_cannot_be_timed_is_refused(model_type: str, asked: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_timing(tiny_model(model_type, head_of(model_type)), LatencyTarget(amount=0.2, **asked))


@pytest.mark.parametrize(
    ("model_type", "asked"),
    [
        ("bert", {"batch": 3, "length": 5}),
        ("bert", {"dtype": "bfloat16"}),
        ("llama", {"phase": "decode", "batch": 2, "length": 6}),
        ("vit", {"batch": 2}),
    ],
)
def test_a_pass_reads_what_the_target_says(
    model_type: str, asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _, batches, _ = problem(model_type)
    example = {name: value[:1] for name, value in batches[0].items() if name != "labels"}
    seen: list[tuple[Any, torch.dtype]] = []
    forward = type(model).forward

    def watched(self: PreTrainedModel, **inputs: Any) -> Any:
        first = inputs.get("input_ids", inputs.get("pixel_values"))
        past = inputs.get("past_key_values")
        seen.append(((*first.shape[:2], past and past.get_seq_length()), self.dtype))
        return forward(self, **inputs)

    monkeypatch.setattr(type(model), "forward", watched)
    with torch.inference_mode(), passes(model, LatencyTarget(amount=0.2, **asked), example, None) as run:
        seen.clear()
        assert run() > 0 and run() > 0
    (first, dtype), (second, _) = seen
    batch, length = asked.get("batch", 1), asked.get("length", batches[0].length)
    shape = {"vit": (batch, 3, None), "llama": (batch, 1, length)}.get(model_type, (batch, length, None))
    assert first == second == shape and dtype == getattr(torch, asked.get("dtype", "float32"))
    assert model.dtype == torch.float32, "what is timed in another precision is a copy"


@pytest.mark.whole
def test_onnxruntime_is_timed_on_what_is_exported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "SECONDS", 0.0)
    model, _, batches, _ = problem("bert")
    example = {name: value[:1] for name, value in batches[0].items() if name != "labels"}
    asked = LatencyTarget(amount=0.2, batch=2, length=5, engine="onnxruntime")
    tokenizer: Any = SimpleNamespace(model_input_names=["input_ids", "attention_mask"])
    with passes(model, asked, example, tokenizer) as run:
        one, other = timing.undisturbed(run, run)
    assert one > 0 and other > 0


@pytest.mark.whole
@pytest.mark.usefixtures("without_figures")
def test_a_run_says_what_was_asked_predicted_and_achieved(
    tmp_path: Path, files: dict[str, str], clock: list[float]
) -> None:
    prune = {"target": {"latency": {"amount": 0.3, "batch": 2, "length": 8}}, "layout": "per_layer"}
    changes = {"prune": prune, "compensation": QUICK, "output": {"random_seeds": 1}}
    result = prune_from_config(settings_for(tmp_path, files, "bert", **changes))
    reached = result.report.reached
    assert reached is not None and reached.unit == "ms"
    assert reached.of == "latency, batch 2, length 8, phase prefill, dtype float32, engine torch"
    assert reached.asked == pytest.approx(0.7 * reached.before) and reached.predicted <= reached.asked
    assert reached.achieved == pytest.approx(reached.predicted), "the clock knows no noise"
    with pytest.raises(ValueError, match=r"target.latency 0.999 cannot be met .* 0\.\d+, from [\d.]+ ms to [\d.]+ ms"):
        result.cut({"latency": {"amount": 0.999, "batch": 2, "length": 8}})
