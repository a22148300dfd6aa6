"""Pulls against their definition, and fast pulls against reference pulls, for every type and kind of arm."""

import numpy as np
import pytest
import torch

from hf_mabprune.architectures import ARCHITECTURES
from hf_mabprune.effects.dense_outputs import DenseOutputs
from hf_mabprune.effects.pulls.reference import ReferencePulls
from hf_mabprune.effects.pulls.replay import ReplayPulls
from hf_mabprune.effects.reserve import Reserve
from hf_mabprune.effects.rewards import REWARDS
from hf_mabprune.tasks.batch import Batch
from tests.problems import arms_of, problem, pull_all, pull_some, rounding, some_context, whole
from tests.shows import Shows
from tests.tiny_models import head_of
from tests.tiny_sizes import UNLIKE

REPLAYED = [
    name
    for name in ARCHITECTURES.names()
    if head_of(name) != "AutoModel" and not any(stack.shared for stack in ARCHITECTURES.get(name).stacks)
]
SERIES = 2e-6  # of a divergence: which terms of its series are taken depends on what else is in the pass
CASES = [(name, "kl") for name in REPLAYED]
CASES += [
    (name, reward) for name in ("bert", "llama", "mixtral", "vit") for reward in REWARDS.names() if reward != "kl"
]


@pytest.mark.parametrize(("model_type", "reward"), CASES)
def test_replayed_pulls_equal_reference_pulls(model_type: str, reward: str, shows: Shows) -> None:
    model, task, batches, arms = problem(model_type)
    shows("pulls", model_type, arms.kinds())
    kept = some_context(arms)
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.float64, rounding(model))):
        model.to(dtype)
        slow = pull_some(ReferencePulls(model, arms, task, batches, reward), kept)
        fast = pull_some(ReplayPulls(model, arms, task, batches, reward), kept)

        assert np.abs(slow).max() > 0 or reward == "accuracy"
        if "kl" in REWARDS.get(reward).needs:
            tolerance = max(tolerance, SERIES * np.abs(slow).max())
        np.testing.assert_allclose(fast, slow, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("deberta-v2", {"conv_kernel_size": 3, "conv_act": "gelu", "num_hidden_layers": 3}),
        ("gpt_neox", {"use_parallel_residual": False}),
        ("opt", {"do_layer_norm_before": False, "word_embed_proj_dim": 16}),
        ("stablelm", {"use_parallel_residual": True}),
        ("wav2vec2", {"do_stable_layer_norm": True, "feat_extract_norm": "layer"}),
    ],
    ids=str,
)
def test_configs_whose_layers_run_otherwise(model_type: str, changes: dict[str, object]) -> None:
    model, task, batches, arms = problem(model_type, **changes)
    model.double()
    kept = some_context(arms)
    slow = pull_some(ReferencePulls(model, arms, task, batches), kept)
    fast = pull_some(ReplayPulls(model, arms, task, batches), kept)
    np.testing.assert_allclose(fast, slow, rtol=0, atol=max(rounding(model), SERIES * np.abs(slow).max()))
    assert np.abs(slow).max() > 1e-7


@pytest.mark.parametrize("model_type", ["gpt2", "mixtral", "t5", "vit"])
def test_without_a_context_they_are_equal_too(model_type: str) -> None:
    model, task, batches, arms = problem(model_type)
    model.double()
    slow = pull_all(ReferencePulls(model, arms, task, batches), whole(arms))
    fast = pull_all(ReplayPulls(model, arms, task, batches), whole(arms))
    np.testing.assert_allclose(fast, slow, rtol=0, atol=max(rounding(model), SERIES * np.abs(slow).max()))
    for site, rows in arms.groups():
        assert np.abs(slow.reshape(len(arms), 2, 2)[rows]).max() > 1e-9, site


@pytest.mark.parametrize("model_type", ["bert", "mixtral", "t5", "vit"])
def test_replay_pays_less_and_counts_it(model_type: str) -> None:
    model, task, batches, arms = problem(model_type)
    kept = whole(arms)
    slow, fast = ReferencePulls(model, arms, task, batches), ReplayPulls(model, arms, task, batches)
    pull_all(slow, kept)
    pull_all(fast, kept)

    tokens, pulls = {"t5": 4 * (7 + 5), "vit": 4}.get(model_type, 4 * 7), 2 * len(arms)
    assert slow.cost.pulls == fast.cost.pulls == pulls
    assert slow.cost.forward_tokens == tokens * (2 * pulls + 2), "two passes a pull, and one a batch"
    layers = 4 if model_type == "t5" else 2
    below = [layer + 2 * site.startswith("decoder") for site, layer in zip(arms.site, arms.layer, strict=True)]
    per_layer = 1 - np.array(below) / layers
    assert fast.cost.forward_tokens == tokens * (2 * per_layer.sum() + 4), "a part of one pass, and two a batch"


def test_replay_without_room_for_its_cache_gives_the_same() -> None:
    model, task, batches, arms = problem("llama")
    kept = some_context(arms)
    roomy = pull_all(ReplayPulls(model, arms, task, batches), kept)
    outputs = DenseOutputs(Reserve(limit=0, disk=0))
    tight = ReplayPulls(model, arms, task, batches, outputs=outputs)

    assert np.array_equal(pull_all(tight, kept), roomy)
    assert not tight._recordings and not outputs._readouts


@pytest.mark.parametrize("model_type", ["qwen2", "mixtral", "t5"])
def test_models_are_left_as_they_were(model_type: str) -> None:
    model, task, batches, arms = problem(model_type)
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
    everything = whole(arms)
    expected = pull_all(ReplayPulls(model, arms, task, batches), everything)
    replay, sizes = ReplayPulls._replay, []

    def with_little_memory(self: ReplayPulls, inputs: Batch, group: np.ndarray, recording: object) -> object:
        sizes.append(len(group))
        if len(group) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return replay(self, inputs, group, recording)  # type: ignore[arg-type]

    monkeypatch.setattr(ReplayPulls, "_replay", with_little_memory)
    pulls = ReplayPulls(model, arms, task, batches)
    np.testing.assert_allclose(pull_all(pulls, everything), expected, rtol=0, atol=1e-7)
    assert pulls.arms_a_forward == 1 and max(sizes) > 1
    monkeypatch.setattr(ReplayPulls, "_replay", lambda *_: (_ for _ in ()).throw(RuntimeError("something else")))
    with pytest.raises(RuntimeError, match="something else"):
        pull_all(pulls, everything)


@pytest.mark.parametrize("reward", ["kl", "loss"])
@pytest.mark.parametrize("model_type", UNLIKE)
def test_half_precision_products_keep_the_effects_of_single_neurons(model_type: str, reward: str) -> None:
    model, task, batches, _ = problem(model_type)
    arms = arms_of(model, 1, batches)
    kept = some_context(arms)
    half = pull_all(ReplayPulls(model, arms, task, batches, reward, products=torch.float16), kept)[:, 0]
    exact = pull_all(ReplayPulls(model.double(), arms, task, batches, reward), kept)[:, 0]
    assert not np.array_equal(half, exact.astype(np.float32))
    alive = np.repeat(np.flatnonzero(kept), 2)
    for site, rows in arms.groups():
        mine = np.isin(alive, rows)
        errors, effect = (half - exact)[mine], np.sqrt(np.square(exact[mine]).mean())
        assert np.sqrt(np.square(errors).mean()) <= 0.01 * effect, site
        assert np.abs(errors).max() <= 0.05 * effect, site


@pytest.mark.parametrize("model_type", ["gpt2", "mixtral", "t5"])
def test_models_in_half_precision_are_pulled_as_those_in_full(model_type: str) -> None:
    model, task, batches, arms = problem(model_type)
    exact = pull_all(ReplayPulls(model, arms, task, batches), whole(arms))[:, 0]
    half = pull_all(ReplayPulls(model.bfloat16(), arms, task, batches), whole(arms))[:, 0]
    # A position may be sent to another expert.
    far = np.abs(half - exact) > 0.1 * np.abs(exact).max()
    assert np.isfinite(half).all() and far.mean() <= (0.1 if model_type == "mixtral" else 0)
