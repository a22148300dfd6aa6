"""What a size must not lose, with high confidence, to be taken."""

from typing import Literal

from pydantic import Field, model_validator

from hf_mabprune.config.amounts import Fraction
from hf_mabprune.config.base import Strict

Promised = Literal["changed", "kl", "metric"]


class PromiseConfig(Strict):
    """Takes the smallest of the target's sizes that loses no more than this, for certain enough, on data like the
    certification split. One of three.
    """

    changed: Fraction | None = Field(None, description="part of the answers that are others than the dense model's")
    kl: float | None = Field(
        None, gt=0, description="mean KL divergence from the dense model in nats, that of each example clipped"
    )
    metric: Fraction | None = Field(None, description="accuracy lost, as a fraction: 0.01 is one point")
    clip: float = Field(1.0, gt=0, description="nats that the divergence of an example is clipped at")
    confidence: float = Field(0.95, gt=0.5, lt=1.0, description="how certain the promise has to be")

    @model_validator(mode="after")
    def _one_of_them(self) -> "PromiseConfig":
        if sum(value is not None for value in (self.changed, self.kl, self.metric)) != 1:
            raise ValueError("promise must be one of: changed, kl, metric")
        if self.kl is not None and self.kl >= self.clip:
            raise ValueError(f"promise.kl must be below promise.clip, {self.clip:g}, got {self.kl:g}")
        return self

    @property
    def of(self) -> Promised:
        """Names what is promised."""
        return "changed" if self.changed is not None else "kl" if self.kl is not None else "metric"

    @property
    def most(self) -> float:
        """Gives how much of it may be lost."""
        return float(getattr(self, self.of))
