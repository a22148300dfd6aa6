"""The contract of a compensation: second moments in, new weights of one cut output projection out.

A site's projection gave y = W h + b in the dense model; the cut one sees x, the S inputs that stay. A method turns
second moments of x and y into new weights W'; the bias, where there may be one, takes up the means. Everything comes
from calibration data; no labels are read.
Symbols: C inputs of a projection of the dense model, S that stay; D outputs; N positions seen.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from hf_mabprune.architectures import Projection
from hf_mabprune.checkpoints.weight_files import largest
from hf_mabprune.effects.activations import Moments
from hf_mabprune.effects.damping import damped
from hf_mabprune.registry import Registry, check_options, option

COMPENSATIONS: Registry[type["Compensation"]] = Registry("compensation", "hf_mabprune.compensation")

ROUNDING = float(torch.finfo(torch.float32).eps)


class Refused(Exception):
    """A method's reason to leave a site alone."""


@dataclass(frozen=True)
class Regression:
    """What a refit is made from: moments of the inputs x that stay and of the dense model's outputs y.

    Attributes:
        x: [S] float64, E[x].
        y: [D] float64, E[y].
        xx: [S, S], E[x x'], in float32 or float64, as moments are.
        yx: [D, S], E[y x'], in the same precision.
        yy: [D] float64, E[y^2].
    """

    x: torch.Tensor
    y: torch.Tensor
    xx: torch.Tensor
    yx: torch.Tensor
    yy: torch.Tensor

    @classmethod
    def of_moments(cls, inputs: Moments, projection: Projection) -> "Regression":
        """From moments of h alone, where x is all of h: y = W h + b is linear in it, so no output need be seen.

        E[y] = W E[h] + b, E[y h'] = W E[h h'] + b E[h]' and E[y^2] = diag(W E[h h'] W') + 2 b W E[h] + b^2.
        """
        weight, bias = projection.float64()
        mean = weight @ inputs.mean  # [D], W E[h]
        yx = weight.to(inputs.second.dtype) @ inputs.second.to(weight.device)  # [D, C], W E[h h']
        yy = (yx.double() * weight).sum(1) + 2 * bias * mean + bias**2
        return cls(inputs.mean, mean + bias, inputs.second, yx.add_(torch.outer(bias, inputs.mean)), yy)

    def at(self, columns: torch.Tensor) -> "Regression":
        """Gives the same regression with x at some columns alone, [S]."""
        xx = self.xx[columns[:, None], columns].to(self.x.device)
        return Regression(self.x[columns], self.y, xx, self.yx[:, columns].to(self.x.device), self.yy)

    def of(self, outputs: torch.Tensor | slice) -> "Regression":
        """Gives the same regression of some outputs alone, [D]."""
        return Regression(self.x, self.y[outputs], self.xx, self.yx[outputs], self.yy[outputs])

    @classmethod
    def of_pairs(
        cls, pairs: Iterator[tuple[torch.Tensor, torch.Tensor]], weights: Iterator[torch.Tensor | float] | None = None
    ) -> "Regression":
        """From x [N, S] and y [N, D], batch by batch, and weights, [N, 1] or one; without, all are alike."""
        count = 0
        sums: list[torch.Tensor] = []
        for x, y in pairs:
            rx, ry = x, y
            if weights is not None:
                own = next(weights)
                rx, ry = x * own, y * own
            parts = [part.double() for part in (rx.sum(0), ry.sum(0), rx.T @ x, ry.T @ x, (ry * y).sum(0))]
            sums = [total + part for total, part in zip(sums, parts, strict=True)] if sums else parts
            count += len(x)
        x, y, xx, yx, yy = (total / count for total in sums)
        return cls(x, y, xx, yx, yy)

    def centred(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Gives covariances, [S, S] of x and [D, S] of y with x: E[x x'] - E[x] E[x]' and E[y x'] - E[y] E[x]'."""
        xx, yx = self.plain()
        return xx.addr_(self.x, self.x, alpha=-1), yx.addr_(self.y, self.x, alpha=-1)

    def plain(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Copies E[x x'] and E[y x'] in float64."""
        return self.xx.to(torch.float64, copy=True), self.yx.to(torch.float64, copy=True)

    def error(self, weight: torch.Tensor, bias: torch.Tensor) -> float:
        """Gives E|W x + b - y|^2 over the variance of y, 0 where y is constant; weight [D, S], bias [D], float64.

        What is below the rounding of the moments, which are products in float32, is no variance.

        By moments: tr((W E[x x'] - 2 E[y x']) W') + b'(2 (W E[x] - E[y]) + b) + E|y|^2, over E|y|^2 - |E[y]|^2.
        """
        xx, yx = self.plain()
        quadratic = ((weight @ xx - 2 * yx) * weight).sum()
        linear = bias @ (2 * (weight @ self.x - self.y) + bias)
        squares = self.yy.sum()
        variance = squares - self.y @ self.y
        return float((quadratic + linear + squares) / variance) if variance > ROUNDING * squares else 0.0


@dataclass(kw_only=True)
class Compensation(ABC):
    """A way to refit what is kept.

    Args:
        read: Part of a position's weight that follows how much the outputs depend on it there, which takes a backward
            pass (`position_weights`); the rest is even.
        guard: Whether refits are taken only where the held-out divergence does not grow.
        bottom_up: Takes x from the model that is already pruned and refitted below (K-prune, Park et al. 2023, arXiv
            2308.03449) and not from the dense one, and fits it to y and what the layers below got wrong. This goes
            layer by layer over all batches: two to three passes of both models, and memory for what a layer gives.
        both_sides: Refits, bottom-up, the projections that make a site's columns too, for one more pass of both.
    """

    read: float | None = option(
        None,
        "part of a position's weight that follows how much the outputs depend on it; 0: all count alike; null: 0.5 "
        "where tokens are predicted, else 0",
    )
    guard: bool = option(True, "leave sites alone without whose refit held-out KL divergence is lower")
    bottom_up: bool = option(False, "refit to what the pruned model has at a site, errors below included")
    both_sides: bool = option(False, "with bottom_up, refit what makes the columns too: gate and up, or q, k, v")

    @abstractmethod
    def fit(self, weight: torch.Tensor, xx: torch.Tensor, yx: torch.Tensor, unit_size: int) -> torch.Tensor:
        """Gives the weights that bring W' x near y.

        Args:
            weight: [D, S] float64, as surgery left them.
            xx: [S, S] float64, second moments of x, centred where a bias takes up the means.
            yx: [D, S] float64, those of y with x.
            unit_size: Columns that a unit has.

        Returns:
            [D, S] float64.

        Raises:
            Refused: If the site is better left alone.
        """


def make_compensation(settings: str | Mapping[str, Any]) -> Compensation:
    """Makes the method that a config names, with its options checked.

    Args:
        settings: A name, or a name and options: `{"name": "least_squares", "bottom_up": True}`.

    Raises:
        ValueError: If there is no such method, or an option is unknown or wrong.
    """
    options = {"name": settings} if isinstance(settings, str) else dict(settings)
    name = options.pop("name", None)
    if name is None:
        raise ValueError(f"compensation needs a name. Known: {', '.join(COMPENSATIONS.names())}")
    method = COMPENSATIONS.get(name)
    return method(**check_options("compensation", name, method, options))


def ridge(xx: torch.Tensor, yx: torch.Tensor, damping: float) -> torch.Tensor:
    """Solves the ridge regression of y on x: yx (xx + lambda I)^-1 by Cholesky, [D, S], all float64.

    Args:
        xx: [S, S], second moments; rank-deficient ones will do.
        damping: lambda, over the mean of the diagonal of xx; more where rounding of the moments makes the sum
            indefinite.
    """

    def solve(strength: float) -> torch.Tensor | None:
        factor = xx.clone()
        factor.diagonal().add_(strength)
        failed = torch.zeros((), dtype=torch.int32, device=xx.device)
        torch.linalg.cholesky_ex(factor.mT, out=(factor.mT, failed))  # as LAPACK wants it, so that nothing is copied
        return None if failed else torch.cholesky_solve(yx.T, factor.mT).T

    first = damping * xx.diagonal().mean().clamp(min=torch.finfo(xx.dtype).tiny)
    return damped(solve, float(first), largest(xx))
