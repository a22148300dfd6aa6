"""Least squares: what went is predicted linearly from what stays."""

from dataclasses import dataclass

import torch

from hf_mabprune.compensation.base import COMPENSATIONS, Compensation, ridge
from hf_mabprune.registry import option


@COMPENSATIONS.register("least_squares")
@dataclass(kw_only=True)
class LeastSquares(Compensation):
    """min over W' of E|W' x - y|^2 + lambda |W' - W_S|^2, W_S being the weights as surgery left them.

    W' = W_S + (E[y x'] - W_S E[x x']) (E[x x'] + lambda I)^-1. With x and y from the dense model that is
    W_S + W_R B, where B predicts the inputs that went from those that stay by ridge regression. So what the data does
    not determine stays as surgery left it.

    Args:
        damping: lambda, over the mean of the diagonal of E[x x'].
    """

    bottom_up: bool = option(True, "refit to what the pruned model has at a site, errors below included")
    both_sides: bool = option(True, "with bottom_up, refit what makes the columns too: gate and up, or q, k, v")
    damping: float = option(0.01, "ridge, relative to the mean second moment of the inputs that stay")

    def __post_init__(self) -> None:
        if not self.damping > 0:
            raise ValueError(f"damping must be above 0, got {self.damping}")

    def fit(self, weight: torch.Tensor, xx: torch.Tensor, yx: torch.Tensor, unit_size: int) -> torch.Tensor:
        """See `Compensation.fit`."""
        # W' - W_S is the ridge regression on x of y - W_S x, what W_S leaves: its moments are E[y x'] - W_S E[x x'].
        return weight + ridge(xx, yx - weight @ xx, self.damping)
