"""How a search finds the arms that are safe to remove."""

from collections.abc import Collection
from typing import Any, Literal

from pydantic import Field, model_validator

from hf_mabprune.config.base import Strict

# Settings that earlier versions had -> what to write in their place.
RETIRED = {
    "search.refit": "search.refit is no setting any more: write search.rule: refit (or single, or interactions)",
    "search.interactions": "search.interactions is no setting any more: write search.rule: interactions (or single)",
    "search.moves": "search.moves is no setting any more: write search.rule: {name: refit, moves: ...}",
    "search.label_draws": "search.label_draws is no setting any more: write search.rule: {label_draws: ...}",
}
MAX_ROUNDS = 100_000
OF_KL = ("refit", "interactions")  # rules that know no other reward


class SearchConfig(Strict):
    """How the arms are found: by pulls, a policy and a removal rule, or by a criterion alone."""

    criterion: str | dict[str, Any] | None = Field(
        None,
        description="criterion that chooses alone, without pulls, e.g. kfac_obs, or {name: obs, damping: 0.1}: the "
        "cheap way; null: pulls",
    )
    policy: dict[str, Any] = Field(
        {"name": "race"}, description="bandit policy and its options, e.g. {name: ucb1, c: 1.0}"
    )
    rule: str | dict[str, Any] | None = Field(
        None,
        description="removal rule, a name or {name: ..., option: ...}, e.g. {name: refit, moves: 8}; null: "
        "refit where compensation is least_squares, the reward kl and rounds are 1 or left out, else interactions "
        "where the reward is kl, else single; of layers, single",
    )
    reward: str = Field("kl", description="what makes an arm safe to remove, e.g. kl or loss")
    rounds: int | None = Field(
        None,
        gt=0,
        description="removals in steps; each round pulls in the context of what is gone; null: 1 with rule refit, "
        "else 8",
    )
    pulls_per_arm: float | None = Field(
        None,
        ge=0,
        allow_inf_nan=False,
        description="budget: pulls of the whole search, times the number of arms; null: 1; with rule refit at most "
        "640 pulls, and none on a language model of a large vocabulary, where allocations say more for the cost",
    )
    arms_per_step: int | None = Field(
        None, gt=0, description="arms that the policy selects at a time; null: a quarter of those left"
    )
    memory: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="GiB for all that is kept beside the weights to spare work: statistics, recordings, refits; "
        "what does not fit goes to temporary files, or is made again; null: a quarter of what is free, at most 4",
    )
    products: Literal["auto", "float16"] = Field(
        "auto",
        description="precision of the matrix products on what a mask changes; auto is the model's own, float16 holds "
        "the effect of single neurons too and pays where the device has units for it",
    )

    @model_validator(mode="before")
    @classmethod
    def _refuse_retired(cls, given: Any) -> Any:
        for path, remedy in RETIRED.items():
            if isinstance(given, dict) and path.removeprefix("search.") in given:
                raise ValueError(remedy)
        return given

    @model_validator(mode="after")
    def _components_are_named(self) -> "SearchConfig":
        name = self.policy.get("name")
        if not isinstance(name, str):
            raise ValueError(f"policy needs a name, e.g. {{name: ucb1}}, got {name!r}")
        if isinstance(self.criterion, dict) and not isinstance(self.criterion.get("name"), str):
            raise ValueError("criterion needs a name, e.g. {name: kfac_obs}")
        if self.rounds is not None and self.rounds > MAX_ROUNDS:
            raise ValueError(f"rounds must be at most {MAX_ROUNDS:,}, got {self.rounds}")
        if self.criterion is not None and (self.rule is not None or self.rounds is not None):
            other = "rule" if self.rule is not None else "rounds"
            raise ValueError(f"a criterion chooses without pulls, so it takes no {other}: leave one of them out")
        return self

    def resolved_rule(self, compensation: str | None, kinds: Collection[str] = ()) -> dict[str, Any]:
        """Gives name and options of the removal rule, the name decided where it was left out.

        Args:
            compensation: Name of the method that refits what stays; None for none.
            kinds: Kinds of arms.

        Raises:
            ValueError: For a rule that contradicts the other settings, or a search that measures nothing.
        """
        given = {"name": self.rule} if isinstance(self.rule, str) else dict(self.rule or {})
        one_round = (self.rounds or 1) == 1
        may_refit = compensation == "least_squares" and self.reward == "kl" and one_round
        usual = "refit" if may_refit else "interactions" if self.reward == "kl" else "single"
        usual = "single" if "layer" in kinds else usual
        name = given.pop("name", None) or usual
        if name in OF_KL and "layer" in kinds:
            raise ValueError(f"search.rule {name} is for what is inside of layers: set search.rule: single for layers")
        if name in OF_KL and self.reward != "kl":
            raise ValueError(f"search.rule {name} is for the reward kl, got reward {self.reward}")
        if name == "refit" and not one_round:
            raise ValueError(
                f"search.rule refit takes one round, got rounds {self.rounds}: leave them out, or take another rule"
            )
        if name == "refit" and compensation != "least_squares":
            raise ValueError(
                f"search.rule refit counts on compensation least_squares, got {compensation or 'null'}: set it, or "
                "take another rule"
            )
        if name == "single" and self.pulls_per_arm == 0:
            raise ValueError("search.pulls_per_arm must be a number > 0, for rule single knows nothing without pulls")
        return {"name": name, **given}
