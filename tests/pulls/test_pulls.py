"""Pulls against their definition, and fast pulls against reference pulls, for every type and kind of arm."""

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from hf_mabprune.architectures import ARCHITECTURES
from hf_mabprune.architectures.cost import arm_table
from hf_mabprune.arms import ArmTable
from hf_mabprune.config import PruneConfig, SearchConfig, TargetConfig
from hf_mabprune.effects.dense_outputs import DenseOutputs
from hf_mabprune.effects.masking import masked
from hf_mabprune.effects.pulls import Pulls
from hf_mabprune.effects.pulls.reference import ReferencePulls
from hf_mabprune.effects.pulls.replay import ReplayPulls
from hf_mabprune.effects.rewards import REWARDS
from hf_mabprune.policies import POLICIES
from hf_mabprune.runtime.accelerator import make_accelerator
from hf_mabprune.search.loop import Search
from hf_mabprune.search.run import make_policy
from hf_mabprune.selection.layouts import make_plans
from hf_mabprune.selection.target import make_plan
from hf_mabprune.session import open_session
from hf_mabprune.tasks.base import Task
from hf_mabprune.tasks.batch import Batch
from hf_mabprune.tasks.sampling import split_by_length
from tests.seeds import moved
from tests.tasks.tiny_tasks import make_tokenizer, task_of
from tests.tiny_models import tiny_model

DECODERS = ("llama", "mistral", "qwen2", "qwen3")


def problem(model_type: str) -> tuple[PreTrainedModel, Task, list[Batch], ArmTable]:
    """A tiny model with its task, three padded batches and all its arms."""
    decoder = model_type in DECODERS
    model = tiny_model(model_type, "AutoModelForCausalLM" if decoder else "AutoModelForSequenceClassification")
    task = task_of(model, make_tokenizer("plain" if decoder else "pair"))
    generator = torch.Generator().manual_seed(moved(3))
    batches = []
    for _ in range(3):
        ids = torch.randint(3, 16, (4, 7), generator=generator)
        attention = torch.ones_like(ids)
        if not decoder:
            ids[0, 5:], attention[0, 5:] = 0, 0
        labels = ids.clone() if decoder else torch.randint(0, 2, (4,), generator=generator)
        batches.append({"input_ids": ids, "attention_mask": attention, "labels": labels})
    return model, task, batches, arm_table(model, ["neuron", "head"], 16, 7)


def some_context(arms: ArmTable) -> np.ndarray:
    kept = np.ones(len(arms), dtype=bool)
    kept[[1, 4, len(arms) - 1]] = False
    return kept


def pull_all(pulls: Pulls, kept: np.ndarray) -> np.ndarray:
    pulls.set_context(kept)
    arms = np.flatnonzero(kept)
    return pulls.pull(np.repeat(arms, 2), np.tile([0, 2], len(arms)))


def rounding(model: PreTrainedModel) -> float:
    """How far two ways to the same numbers may end up apart in float64.

    The norms of decoders work in float32 all the same: what differs in the last digit of a float64 there may differ in
    the last digit of a float32 behind it.
    """
    return 1e-8 if hasattr(model.base_model, "norm") else 1e-13


@pytest.mark.parametrize("reward", sorted(REWARDS))
@pytest.mark.parametrize("model_type", ARCHITECTURES.names())
def test_replayed_pulls_equal_reference_pulls(model_type: str, reward: str) -> None:
    model, task, batches, arms = problem(model_type)
    kept = some_context(arms)
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.float64, rounding(model))):
        model.to(dtype)
        slow = pull_all(ReferencePulls(model, arms, task, batches, reward), kept)
        fast = pull_all(ReplayPulls(model, arms, task, batches, reward), kept)

        assert np.abs(slow).max() > 0 or reward == "accuracy"
        np.testing.assert_allclose(fast, slow, rtol=0, atol=tolerance)


def test_replay_pays_less_and_counts_it() -> None:
    model, task, batches, arms = problem("bert")
    kept = np.ones(len(arms), dtype=bool)
    slow, fast = ReferencePulls(model, arms, task, batches), ReplayPulls(model, arms, task, batches)
    pull_all(slow, kept)
    pull_all(fast, kept)

    tokens, pulls = batches[0]["input_ids"].numel(), 2 * len(arms)
    assert slow.cost.pulls == fast.cost.pulls == pulls
    assert slow.cost.forward_tokens == tokens * (2 * pulls + 2), "two passes a pull, and one a batch"
    per_layer = np.array([(2 - layer) / 2 for layer in arms.layer])
    assert fast.cost.forward_tokens == tokens * (2 * per_layer.sum() + 4), "a part of one pass, and two a batch"


def test_replay_without_room_for_its_cache_gives_the_same() -> None:
    model, task, batches, arms = problem("llama")
    kept = some_context(arms)
    roomy = pull_all(ReplayPulls(model, arms, task, batches), kept)
    outputs = DenseOutputs(memory=0, disk=0)
    tight = ReplayPulls(model, arms, task, batches, outputs=outputs, recording_bytes=0)

    assert np.array_equal(pull_all(tight, kept), roomy)
    assert not tight._recordings and not outputs._readouts and not outputs._files


def test_a_pull_is_the_loss_with_the_arm_masked_minus_the_loss_without() -> None:
    model, task, batches, arms = problem("bert")
    arm = int(arms.of_kind("neuron")[1])  # neurons 16 to 31 of layer 0
    mask = torch.ones(48)
    mask[16:32] = 0
    inputs = {name: tensor for name, tensor in batches[0].items() if name != "labels"}
    with torch.no_grad():
        before = torch.nn.functional.cross_entropy(model(**inputs).logits, batches[0]["labels"])
        with masked(model, neuron_mask={0: mask}):
            after = torch.nn.functional.cross_entropy(model(**inputs).logits, batches[0]["labels"])
    reward = ReferencePulls(model, arms, task, batches, "loss").pull(np.array([arm]), np.array([0]))[0, 0]

    assert reward == pytest.approx(float(before - after), abs=1e-6)


def test_models_are_left_as_they_were() -> None:
    model, task, batches, arms = problem("qwen2")
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pull_all(ReplayPulls(model, arms, task, batches), some_context(arms))

    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    assert not any("forward" in vars(module) for module in model.modules())


def test_a_loss_that_is_not_finite_is_seen() -> None:
    model, task, batches, arms = problem("bert")
    with torch.no_grad():
        model.classifier.bias[0] = float("nan")
    pulls = ReplayPulls(model, arms, task, batches)
    assert not np.isfinite(pulls.pull(np.array([0]), np.array([1]))).any()


def test_out_of_memory_means_fewer_arms_a_forward_not_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    model, task, batches, arms = problem("llama")
    whole = np.ones(len(arms), dtype=bool)
    expected = pull_all(ReplayPulls(model, arms, task, batches), whole)
    replay, sizes = ReplayPulls._replay, []

    def with_little_memory(self: ReplayPulls, inputs: Batch, group: np.ndarray, recording: object) -> object:
        sizes.append(len(group))
        if len(group) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return replay(self, inputs, group, recording)  # type: ignore[arg-type]

    monkeypatch.setattr(ReplayPulls, "_replay", with_little_memory)
    pulls = ReplayPulls(model, arms, task, batches)
    np.testing.assert_allclose(pull_all(pulls, whole), expected, rtol=0, atol=1e-7)
    assert pulls.arms_a_forward == 1 and max(sizes) > 1
    monkeypatch.setattr(ReplayPulls, "_replay", lambda *_: (_ for _ in ()).throw(RuntimeError("something else")))
    with pytest.raises(RuntimeError, match="something else"):
        pull_all(pulls, whole)


def test_batches_are_split_by_length_and_nothing_else_changes() -> None:
    generator = torch.Generator().manual_seed(moved(0))
    lengths = torch.tensor([3, 12, 5, 4, 11, 2, 6, 5])
    attention = (torch.arange(12) < lengths[:, None]).long()
    ids = torch.randint(3, 16, (8, 12), generator=generator) * attention
    batch = {"input_ids": ids, "attention_mask": attention, "labels": torch.arange(8)}
    parts = split_by_length(batch)
    assert [part["input_ids"].shape for part in parts] == [(2, 3), (2, 5), (2, 6), (2, 12)]
    for part in parts:
        for row, label in enumerate(part["labels"]):
            width = part["input_ids"].shape[1]
            assert torch.equal(part["input_ids"][row], ids[label, :width]) and not ids[label, width:].any()
    assert sorted(torch.cat([part["labels"] for part in parts]).tolist()) == list(range(8))
    assert len(split_by_length({**batch, "attention_mask": attention.flip(1)})) == 1, "padded on the left"
    even = torch.ones_like(attention)
    assert len(split_by_length({**batch, "attention_mask": even})) == 1
    assert len(split_by_length({"input_ids": ids})) == 1


@pytest.mark.parametrize("reward", ["kl", "loss"])
@pytest.mark.parametrize("model_type", ARCHITECTURES.names())
def test_half_precision_products_keep_the_effects_of_single_neurons(model_type: str, reward: str) -> None:
    model, task, batches, _ = problem(model_type)
    arms = arm_table(model, ["neuron", "head"], 1, 7)
    kept = some_context(arms)
    half = pull_all(ReplayPulls(model, arms, task, batches, reward, products=torch.float16), kept)[:, 0]
    exact = pull_all(ReplayPulls(model.double(), arms, task, batches, reward), kept)[:, 0]
    assert not np.array_equal(half, exact.astype(np.float32))
    alive = np.repeat(np.flatnonzero(kept), 2)
    for kind, layer, rows in arms.groups():
        mine = np.isin(alive, rows)
        errors, effect = (half - exact)[mine], np.sqrt(np.square(exact[mine]).mean())
        assert np.sqrt(np.square(errors).mean()) <= 0.01 * effect, (kind, layer)
        assert np.abs(errors).max() <= 0.05 * effect, (kind, layer)


def finished_order(search: Search) -> np.ndarray:
    for _ in search.run():
        pass
    return search.finished().order


def searches(model_type: str) -> tuple[Search, Search]:
    """The same search with either engine, in double precision, where rounding is far below what sets arms apart."""
    model, task, batches, _ = problem(model_type)
    model.double()
    arms = arm_table(model, ["neuron", "head"], 4, 7)
    target = TargetConfig(neurons=0.5, heads=0.5)
    plan = make_plan(arms, target, {"parameters": 1, "macs": 1}, "per_layer", {"neuron": 1, "head": 1})
    config = SearchConfig(rounds=2, pulls_per_arm=2)
    reference, replay = (
        Search(engine(model, arms, task, batches), POLICIES.get("ucb1")(arms=len(arms), seed=0), [plan], config)
        for engine in (ReferencePulls, ReplayPulls)
    )
    return reference, replay


@pytest.mark.parametrize("model_type", ARCHITECTURES.names())
def test_fast_and_reference_pulls_select_the_same_arms(model_type: str) -> None:
    reference, replay = searches(model_type)
    assert np.array_equal(finished_order(reference), finished_order(replay))


@pytest.mark.parametrize("model_type", ARCHITECTURES.names())
def test_a_search_resumed_with_the_other_engine_selects_the_same_arms(model_type: str) -> None:
    expected = finished_order(searches(model_type)[0])
    for steps in (1, 4):
        first, second = searches(model_type)
        for begun, other in ((first, second), (second, first)):
            for _ in zip(range(steps), begun.run(), strict=False):
                pass
            other.load_state_dict(begun.state_dict())
            assert np.array_equal(finished_order(other), expected)
            first, second = searches(model_type)


@pytest.mark.slow
def test_fast_and_reference_pulls_select_the_same_arms_in_the_quickstart() -> None:
    settings = PruneConfig.from_yaml("configs/quickstart.yaml")
    session = open_session(settings, make_accelerator())
    session.dense.double()
    plan = make_plans(session.dense, session.arms, session.totals, settings.prune).search
    orders = []
    for engine in (ReferencePulls, ReplayPulls):
        pulls = engine(
            session.dense, session.arms, session.task, session.batches["calibration"], settings.search.reward
        )
        orders.append(finished_order(Search(pulls, make_policy(settings, len(session.arms)), [plan], settings.search)))
    assert np.array_equal(*orders)
