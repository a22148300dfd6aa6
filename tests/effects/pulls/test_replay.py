"""Pulls against their definition, and fast pulls against reference pulls, for every type and kind of arm."""

import numpy as np
import pytest
import torch

from hf_mabprune.architectures import ARCHITECTURES
from hf_mabprune.architectures.cost import arm_table
from hf_mabprune.effects.dense_outputs import DenseOutputs
from hf_mabprune.effects.pulls.reference import ReferencePulls
from hf_mabprune.effects.pulls.replay import ReplayPulls
from hf_mabprune.effects.rewards import REWARDS
from hf_mabprune.tasks.batch import Batch
from tests.problems import problem, pull_all, rounding, some_context


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
