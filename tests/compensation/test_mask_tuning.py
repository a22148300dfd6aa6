"""Mask tuning against numpy on the arms' output contributions."""

import numpy as np
import pytest
import torch

from hf_mabprune.compensation import DenseReference, compensate, make_compensation
from hf_mabprune.compensation.base import Refused
from hf_mabprune.compensation.mask_tuning import MaskTuning
from hf_mabprune.surgery.cut import cut
from tests.problems import problem
from tests.seeds import moved
from tests.tiny_models import keep_of, outputs_of


def random_site(seed: int, unit_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x [N, S], weight [D, S] and a target y [N, D] near weight x."""
    rng = np.random.default_rng(moved(seed))
    x, weight = rng.normal(size=(60, 4 * unit_size)), rng.normal(size=(5, 4 * unit_size))
    return x, weight, x @ weight.T * 1.3 + rng.normal(size=(60, 5))


def fit(x: np.ndarray, weight: np.ndarray, y: np.ndarray, unit_size: int) -> np.ndarray:
    moments = (torch.as_tensor(array) for array in (weight, x.T @ x / len(x), y.T @ x / len(x)))
    return MaskTuning().fit(*moments, unit_size=unit_size).numpy()


@pytest.mark.parametrize("unit_size", [1, 3])
def test_scales_are_those_of_a_regression_on_the_arms_contributions(unit_size: int) -> None:
    x, weight, y = random_site(0, unit_size)
    units = [slice(start, start + unit_size) for start in range(0, 4 * unit_size, unit_size)]
    contributions = np.stack([(x[:, unit] @ weight[:, unit].T).ravel() for unit in units], axis=1)  # [N * D, units]
    scales = np.linalg.lstsq(contributions, y.ravel(), rcond=None)[0]

    np.testing.assert_allclose(fit(x, weight, y, unit_size), weight * np.repeat(scales, unit_size), atol=1e-4)


def test_a_scale_beyond_ten_is_refused() -> None:
    x, weight, y = random_site(1, 1)
    with pytest.raises(Refused, match=r"leaves \[-10, 10\]"):
        fit(x, weight / 20, y, 1)


def test_arms_that_never_fire_keep_their_scale() -> None:
    x, weight, y = random_site(2, 1)
    x[:, 1] = 0
    np.testing.assert_array_equal(fit(x, weight, y, 1)[:, 1], weight[:, 1])


def test_a_refused_site_says_why_and_stays_as_it_was() -> None:
    model, task, batches, _ = problem("llama")
    keep = keep_of(model, {0: range(20)}, {0: range(2)})
    small = cut(model, keep, "per_layer")
    before = outputs_of(small)
    method = make_compensation({"name": "mask_tuning", "limit": 1e-3})
    figures = compensate(method, DenseReference.on(model, task, batches), small, keep)

    assert len(figures.sites) == 2
    assert all(not site.refitted and "leaves [-0.001, 0.001]" in site.reason for site in figures.sites)
    assert torch.equal(outputs_of(small), before)
    assert figures.parameters == 0 and "biases" not in small.config.mabprune
