"""Mask tuning: one scale for each neuron or head that stays."""

from dataclasses import dataclass

import torch

from hf_mabprune.compensation.base import COMPENSATIONS, Compensation, Refused, ridge
from hf_mabprune.registry import option

DAMPING = 1e-6  # so that a scale that the data does not determine is 1


@COMPENSATIONS.register("mask_tuning")
@dataclass(kw_only=True)
class MaskTuning(Compensation):
    """min over m of E|A m - y|^2, the columns of A being W_a x_a for each unit a that stays, folded into the weights.

    From moments alone: G m = r with G_ab = tr(W_a E[x_a x_b'] W_b') and r_a = tr(W_a E[x_a y']).
    Source: Kwon et al. 2022, arXiv 2204.09656, section 4.3.

    Args:
        limit: A site is left alone if a scale leaves [-limit, limit]; 10 in the source.
    """

    limit: float = option(10.0, "largest scale, positive or negative, before a site is left alone")

    def __post_init__(self) -> None:
        if not self.limit > 0:
            raise ValueError(f"limit must be above 0, got {self.limit}")

    def fit(self, weight: torch.Tensor, xx: torch.Tensor, yx: torch.Tensor, unit_size: int) -> torch.Tensor:
        """See `Compensation.fit`."""
        units = len(xx) // unit_size
        # tr(W_a E[x_a x_b'] W_b') sums (W'W)_ij E[x_i x_j] over columns i of unit a and j of b: blocks of W'W * xx.
        gram = (weight.T @ weight * xx).reshape(units, unit_size, units, unit_size).sum((1, 3))
        target = (weight * yx).sum(0).reshape(units, unit_size).sum(1)
        # Solved for m - 1, G (m - 1) = r - G 1, so that the ridge pulls scales to 1 and not to 0.
        scales = 1 + ridge(gram, (target - gram.sum(1)).unsqueeze(0), DAMPING).squeeze(0)
        if (largest := float(scales.abs().max())) > self.limit:
            raise Refused(f"a scale of {largest:.3g} leaves [-{self.limit:g}, {self.limit:g}]")
        return weight * scales.repeat_interleave(unit_size)
