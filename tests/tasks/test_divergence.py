"""The KL divergence of logits against float64 references."""

import pytest
import torch
from torch.nn import functional

from hf_mabprune.tasks.divergence import kl_divergence
from tests.seeds import moved


def reference(original: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """KL in float64, by torch."""
    p, q = original.double().log_softmax(-1), logits.double().log_softmax(-1)
    return functional.kl_div(q, p, log_target=True, reduction="none").sum(-1)


@pytest.mark.parametrize("classes", [2, 7, 1024, 1025, 5000])
@pytest.mark.parametrize("size", [0.01, 1.0, 20.0])
def test_kl_is_torchs(classes: int, size: float) -> None:
    generator = torch.Generator().manual_seed(moved(classes))
    original = 3 * torch.randn(4, 3, classes, generator=generator)
    logits = original + size * torch.randn(4, 3, classes, generator=generator)
    found = kl_divergence(original, logits)
    assert found.shape == (4, 3)
    assert found.dtype == (torch.float64 if classes <= 1024 else torch.float32)
    torch.testing.assert_close(found.double(), reference(original, logits), rtol=1e-5, atol=1e-14)


@pytest.mark.parametrize("classes", [2, 7, 4096])
@pytest.mark.parametrize("size", [1e-3, 1e-5, 1e-6])
def test_tiny_differences_keep_their_digits(classes: int, size: float) -> None:
    """KL = Var_p(z - z0) / 2 + third cumulant / 6 + O(size^4); the difference of the given logits is exact."""
    generator = torch.Generator().manual_seed(moved(classes))
    original = torch.randn(5, classes, generator=generator)
    logits = original + size * torch.randn(5, classes, generator=generator)
    p = original.double().softmax(-1)
    change = logits.double() - original.double()
    change = change - (p * change).sum(-1, keepdim=True)
    expected = (p * change**2).sum(-1) / 2 + (p * change**3).sum(-1) / 6
    assert 0 < expected.max() < 10 * size**2
    torch.testing.assert_close(kl_divergence(original, logits).double(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("classes", [3, 2048])
def test_equal_logits_have_no_divergence(classes: int) -> None:
    logits = torch.randn(6, classes, generator=torch.Generator().manual_seed(moved(0)))
    assert kl_divergence(logits, logits.clone()).tolist() == [0.0] * 6


@pytest.mark.parametrize("classes", [3, 2048])
def test_a_shift_of_all_logits_is_no_change(classes: int) -> None:
    logits = torch.randn(6, classes, generator=torch.Generator().manual_seed(moved(0)), dtype=torch.float64)
    assert kl_divergence(logits, logits + 4.0).abs().max() < 1e-6


@pytest.mark.parametrize("classes", [3, 2048])
@pytest.mark.parametrize("size", [40.0, 400.0, 4000.0])
def test_large_changes_stay_finite_and_right(classes: int, size: float) -> None:
    original, logits = torch.zeros(3, classes), torch.zeros(3, classes)
    original[0, 0], logits[0, 1] = size, size  # from one sure answer to another
    original[1, 0], logits[1, 0] = size, -size  # from sure to nearly impossible
    logits[2, 2] = size  # from knowing nothing to sure
    found = kl_divergence(original, logits)
    torch.testing.assert_close(found.double(), reference(original, logits), rtol=1e-5, atol=0)
    assert found[0].item() == pytest.approx(size, rel=1e-5)


def test_logits_that_are_not_finite_are_not_hidden() -> None:
    logits = torch.zeros(2, 5)
    logits[0, 0] = torch.nan
    assert kl_divergence(torch.zeros(2, 5), logits).isnan().tolist() == [True, False]


def test_it_is_never_negative() -> None:
    generator = torch.Generator().manual_seed(moved(5))
    original = torch.randn(200, 30000, generator=generator)
    logits = original + 1e-4 * torch.randn(200, 30000, generator=generator)
    found = kl_divergence(original, logits)
    assert (found > 0).all()
    torch.testing.assert_close(found.double(), reference(original, logits), rtol=1e-4, atol=0)
