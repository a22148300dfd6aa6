"""How a pruned model is trained to get quality back."""

from typing import Any, Literal

from pydantic import Field, model_validator

from hf_mabprune.config.base import Strict

# What a method takes where nothing else is said, in the place of the defaults below.
OF_METHOD: dict[str, dict[str, Any]] = {
    "lora": {
        "examples": 512,
        "batch_size": 4,
        "learning_rate": 1e-3,
        "weight_decay": 0.0,
        "alpha": 1.0,
        "temperature": 1.0,
    },
}


class RecoveryConfig(Strict):
    """How a pruned model gets quality back: training on the calibration split, with the dense model as teacher."""

    method: Literal["full", "lora"] = Field(
        "full",
        description="full: all weights are trained; lora: norms, biases and low-rank updates of what pruning cuts, "
        "merged after, without labels, in minutes (it has defaults of its own)",
    )
    epochs: float = Field(
        1.0, gt=0, allow_inf_nan=False, description="passes over the training examples; fractions are fine"
    )
    examples: int | None = Field(
        None, gt=0, description="cap on training examples (for language models: windows); null: the calibration split"
    )
    max_steps: int | None = Field(None, gt=0, description="cap on optimizer steps; null: what the epochs take")
    batch_size: int = Field(32, gt=0, description="examples an optimizer step, over all processes together")
    learning_rate: float = Field(
        1e-4, gt=0, allow_inf_nan=False, description="peak of the schedule, which falls linearly to zero"
    )
    warmup_ratio: float = Field(0.1, ge=0.0, lt=1.0, description="part of the steps in which the rate rises from zero")
    weight_decay: float = Field(0.01, ge=0.0, allow_inf_nan=False, description="of AdamW; biases and norms get none")
    alpha: float = Field(
        0.5, ge=0.0, le=1.0, description="weight of the dense model's outputs; 1 - alpha is that of the labels"
    )
    temperature: float = Field(2.0, gt=0, allow_inf_nan=False, description="of the softmax of teacher and student")
    hidden_weight: float = Field(
        0.0, ge=0.0, allow_inf_nan=False, description="weight of the distance between hidden states after each layer"
    )
    positions: float | None = Field(
        None,
        gt=0,
        le=1.0,
        description="part of each example's positions, drawn anew each time, that counts for the loss; null: all, or "
        "with a large vocabulary as many as cost no more than the layers",
    )
    lora_rank: int = Field(16, gt=0, description="rank of the updates of method lora")
    stages: int = Field(
        1,
        gt=0,
        description="above 1: the target is reached in so many steps, each cut, refitted and trained before the next "
        "search; they share epochs and max_steps",
    )

    @model_validator(mode="before")
    @classmethod
    def _as_the_method_has_it(cls, given: Any) -> Any:
        return {**OF_METHOD.get(str(given.get("method")), {}), **given} if isinstance(given, dict) else given
