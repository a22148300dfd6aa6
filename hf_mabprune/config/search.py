"""How a search finds the arms that are safe to remove."""

from typing import Any, Literal

from pydantic import Field, model_validator

from hf_mabprune.config.base import Strict

ROUNDS = 8  # of a search without refits whose rounds are left out


class SearchConfig(Strict):
    """How the arms are found."""

    policy: dict[str, Any] = Field(
        {"name": "race"}, description="bandit policy and its options, e.g. {name: ucb1, c: 1.0}"
    )
    reward: Literal["kl", "loss", "squared", "accuracy"] = Field("kl", description="what makes an arm safe to remove")
    refit: bool | None = Field(
        None,
        description="whether pulls and estimates count on the refit of what stays, all in one round; null: where "
        "compensation is least_squares, the reward kl, and rounds are 1 or left out",
    )
    rounds: int | None = Field(
        None,
        gt=0,
        description="removals in steps; each round pulls in the context of what is gone; null: 1 with refit, else 8",
    )
    interactions: bool | None = Field(
        None,
        description="whether removals take into account which arms stand in for each other, from gradients; null: "
        "where the reward is kl and there is no refit",
    )
    label_draws: int = Field(
        4, gt=0, description="backward passes a batch for interactions, where outputs are more than 8 classes"
    )
    pulls_per_arm: float = Field(
        1.0, ge=0, allow_inf_nan=False, description="budget: pulls of the whole search, times the number of arms"
    )
    moves: int = Field(
        48, ge=0, description="with refit: allocations of removals to layers that are measured on the refitted model"
    )
    arms_per_step: int | None = Field(
        None, gt=0, description="arms that the policy selects at a time; null: a quarter of those left"
    )
    products: Literal["auto", "float16"] = Field(
        "auto",
        description="precision of the matrix products on what a mask changes; auto is the model's own, float16 holds "
        "the effect of single neurons too and pays where the device has units for it",
    )

    @model_validator(mode="after")
    def _policy_is_named(self) -> "SearchConfig":
        name = self.policy.get("name")
        if not isinstance(name, str):
            raise ValueError(f"policy needs a name, e.g. {{name: ucb1}}, got {name!r}")
        for name in ("interactions", "refit"):
            if getattr(self, name) and self.reward != "kl":
                raise ValueError(f"{name} is for the reward kl, got reward {self.reward}")
        if self.refit and self.interactions:
            raise ValueError("refit has interactions of its own: set interactions to false, or refit to false")
        if self.refit and (self.rounds or 1) > 1:
            raise ValueError(f"refit takes one round, got rounds {self.rounds}: leave it out, or set refit to false")
        return self

    def resolved(self, compensation: str | None) -> "SearchConfig":
        """Gives the settings with `refit` and what follows from it decided.

        Args:
            compensation: Name of the method that refits what stays; None for none.

        Raises:
            ValueError: For a search that counts on a refit that never comes, or that measures nothing.
        """
        if self.refit and compensation is None:
            raise ValueError("search.refit counts on compensation, got null: set it, or set refit to false")
        one = (self.rounds or 1) == 1
        may = compensation == "least_squares" and self.reward == "kl" and one and not self.interactions
        refit = may if self.refit is None else self.refit
        interactions = self.interactions
        if interactions is None and not refit:
            interactions = self.reward == "kl"
        if self.pulls_per_arm == 0 and not interactions and not refit:
            raise ValueError("search.pulls_per_arm must be a number > 0, unless interactions or refit are on")
        rounds = 1 if refit else self.number_of_rounds
        return self.model_copy(update={"refit": refit, "interactions": interactions, "rounds": rounds})

    @property
    def number_of_rounds(self) -> int:
        """Removal rounds: `rounds`, or what it is where that was left out."""
        return self.rounds or ROUNDS
