"""Weights of positions: where the outputs look, refits look."""

import pytest
import torch

from hf_mabprune.architectures import architecture_of
from hf_mabprune.compensation import DenseReference
from hf_mabprune.effects.activations import moments
from hf_mabprune.effects.position_weights import PositionWeights, position_weights
from tests.problems import problem


@pytest.mark.parametrize("model_type", ["bert", "llama", "mixtral", "t5"])
def test_they_are_one_in_the_mean(model_type: str) -> None:
    model, task, batches, _ = problem(model_type)
    sites = [site for site in architecture_of(model).sites(model) if site.kind != "expert"]
    found, passes = position_weights(model, task, batches, sites)
    assert passes >= 1 and all(
        not parameter.requires_grad or parameter.grad is None for parameter in model.parameters()
    )
    for site in sites:
        own = [each.at(site, batch) for each, batch in zip(found, batches, strict=True)]
        assert torch.cat(own).mean() == pytest.approx(1.0, rel=1e-4)


def test_a_classifier_reads_its_last_layer_at_the_first_position() -> None:
    model, task, batches, _ = problem("bert")
    last = [site for site in architecture_of(model).sites(model) if site.kind == "neuron"][-1]
    weights = position_weights(model, task, batches, [last])[0][0].read[last.name]
    assert (weights[:, 0] > 0).all() and not weights[:, 1:].any()


def test_moments_and_regressions_count_positions_by_their_weights() -> None:
    model, task, batches, _ = problem("llama")
    site = architecture_of(model).sites(model)[1]
    alone = [moments(model, task, [batch], [site])[site.name] for batch in batches[:2]]
    weights = [PositionWeights(even=3.0), PositionWeights(even=1.0)]
    both = moments(model, task, batches[:2], [site], weights)[site.name]
    count = sum(each.count for each in alone)
    expected = sum(w.even * each.count * each.second for w, each in zip(weights, alone, strict=True)) / count
    torch.testing.assert_close(both.second, expected, rtol=1e-4, atol=1e-6)


def test_further_batches_are_not_asked_and_all_weights_are_one_in_the_mean() -> None:
    model, task, batches, _ = problem("llama")
    reference = DenseReference.on(model, task, batches[:2], further=batches[2:], read=0.5)
    site = architecture_of(model).sites(model)[0]
    weights = list(reference.weights_of(site) or ())
    assert weights[-1] == 0.5 and torch.is_tensor(weights[0])
    rows = [
        int(batch.counted("attention_mask", batch["input_ids"].unsqueeze(-1)).sum()) for batch in reference.batches
    ]
    total = sum(float(own.sum()) if torch.is_tensor(own) else own * n for own, n in zip(weights, rows, strict=True))
    assert total == pytest.approx(sum(rows), rel=0.3)  # padding counts as text where shares are told
    assert DenseReference.on(model, task, batches).weights_of(site) is None
