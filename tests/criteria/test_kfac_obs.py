"""The factors against gradients taken one example and position at a time; the scores against least squares."""

import numpy as np
import pytest
import torch

from hf_mabprune.criteria import CRITERIA
from hf_mabprune.effects.kfac import READ
from tests.criteria.by_hand import case, columns, examples, greedy, inputs_of, projection, weight


def slopes(statistics, arm: int) -> list[np.ndarray]:
    """[T, D] for each example of a two-class model: du/dy, u = sqrt(p_0 p_1) (odds - odds now)."""
    seen: list[torch.Tensor] = []

    def hook(_, arguments, output):
        seen.append(output.detach().requires_grad_())
        return seen[-1]

    found = []
    linear = projection(statistics, arm)
    for example in examples(statistics):
        handle = linear.register_forward_hook(hook)
        logits = statistics.model(input_ids=example["input_ids"], attention_mask=example["attention_mask"]).logits[0]
        handle.remove()
        p = logits.detach().softmax(-1)
        u = (p[0] * p[1]).sqrt() * (logits[1] - logits[0])
        found.append(torch.autograd.grad(u, seen[-1])[0][0].numpy())
    return found


@pytest.mark.parametrize("kind", ["neuron", "head"])
def test_factors_are_sums_over_positions(kind: str) -> None:
    statistics = case("bert", 16)
    for first in (int(arms[0]) for _, arms in statistics.arms.groups() if statistics.arms.kind[arms[0]] == kind):
        g, h = slopes(statistics, first), np.concatenate(inputs_of(statistics, first))
        flat = np.concatenate(g)
        found = statistics.kfac_factors[str(statistics.arms.site[first])]
        np.testing.assert_allclose(found.outputs, flat.T @ flat / len(g), rtol=1e-4, atol=1e-9)
        weights = READ * np.square(flat).sum(1) / np.square(flat).sum() + (1 - READ) / len(h)
        assert weights.sum() == pytest.approx(1)
        np.testing.assert_allclose(found.inputs.mean, weights @ h, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(found.inputs.second, (h.T * weights) @ h, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(found.root() @ found.root(), found.outputs, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("model_type", ["bert", "llama"])
def test_scores_are_the_costs_of_least_squares_in_the_metric_of_the_outputs(model_type: str) -> None:
    statistics = case(model_type, 16)
    scores = CRITERIA.get("kfac_obs")().scores(statistics)
    for site, arms in statistics.sites:
        factors = statistics.kfac_factors[site.name]
        size = columns(statistics, int(arms[0])).stop
        covariance = factors.inputs.covariance().numpy()
        rows = np.linalg.cholesky(covariance + 1e-12 * np.eye(len(covariance))).T * np.sqrt(len(covariance))
        root = factors.root().numpy()
        order, increases = greedy(
            root @ weight(statistics, int(arms[0])), rows, 0.01 * float(np.diag(covariance).mean()), size
        )
        expected = np.maximum.accumulate(increases) / 2
        # What is left beside the last arm is hardly determined on some draws.
        np.testing.assert_allclose(scores[arms[order]], expected, rtol=0.02)


def test_a_position_that_nobody_reads_hardly_counts() -> None:
    """The last FFN of a classifier that reads the first position: every other one has only the even share."""
    statistics = case("bert", 16)
    first = max(int(arms[0]) for _, arms in statistics.arms.groups() if statistics.arms.kind[arms[0]] == "neuron")
    for slope in slopes(statistics, first):
        assert np.abs(slope[1:]).max() == 0 < np.abs(slope[0]).max()


def test_damping_is_checked() -> None:
    with pytest.raises(ValueError, match="damping"):
        CRITERIA.get("kfac_obs")(damping=0)
