"""PruneConfig and its parts: every setting of a run, checked before any compute.

The YAML file is this tree written down. Unknown keys are errors that name the nearest known key.
"""

from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from hf_mabprune.registry import nearest

Fraction = Annotated[float, Field(gt=0.0, lt=1.0)]
Fractions = Fraction | Annotated[list[Fraction], Field(min_length=1)]


ROUNDS = 8


class Strict(BaseModel):
    """A part of the config: no unknown keys, no change after checking."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=False)


class ModelConfig(Strict):
    """Which model is pruned."""

    name: str = Field(description="Hub name or folder of the model")
    revision: str | None = Field(None, description="branch, tag or commit on the Hub")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="precision of the search; auto is float32, for half precision loses the effect of single neurons",
    )
    save_dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="precision of the saved weights; auto is that of the source checkpoint"
    )
    trust_remote_code: bool = Field(False, description="run code that comes with the model")


class DatasetConfig(Strict):
    """Where the examples come from: a name on the Hub, or local files."""

    path: str = Field(description="Hub name, or a loader for local files: parquet, json, csv, text")
    name: str | None = Field(None, description="configuration of the data set on the Hub")
    data_files: dict[str, str | list[str]] | None = Field(None, description="split -> file or files, for local files")
    revision: str | None = Field(None, description="branch, tag or commit on the Hub")


class SplitsConfig(Strict):
    """Which slice serves which purpose. Rewards see calibration, choices see validation, test is read once."""

    calibration: str = Field("train", description="slice that pulls are measured on, e.g. train[2000:]")
    validation: str = Field("validation", description="slice that choices such as the layout are made on")
    test: str = Field("test", description="slice that only the report reads")


class TaskConfig(Strict):
    """The data and the kind of task."""

    type: str | None = Field(None, description="kind of task; taken from the model's head when left out")
    dataset: DatasetConfig = Field(description="where the examples come from")
    columns: dict[str, str] = Field({}, description="role -> column; roles depend on the task: text, text_pair, label")
    splits: SplitsConfig = Field(SplitsConfig(), description="which slice serves which purpose")
    calibration_examples: int = Field(1024, gt=0, description="examples (for language models: windows) for pulls")
    evaluation_examples: int | None = Field(None, gt=0, description="cap on validation and test examples; null: all")
    batch_size: int = Field(32, gt=0, description="examples a pull is measured on")
    max_broken_batches: int = Field(
        2, ge=0, description="calibration batches without a finite loss that are skipped before the run gives up"
    )
    max_length: int | None = Field(None, gt=1, description="longest sequence or language-model window, in tokens")
    metrics: list[str] = Field([], description="metrics; empty: the task's own. Unknown names go to evaluate.load")


class TargetConfig(Strict):
    """How much goes. Either neurons and / or heads, or parameters, or MACs; all are fractions removed.

    A list gives several sizes from one search; two lists are taken in pairs.
    """

    neurons: Fractions | None = Field(None, description="fraction of FFN neurons removed; a list gives several sizes")
    heads: Fractions | None = Field(None, description="fraction of attention heads (key-value groups) removed")
    parameters: Fractions | None = Field(None, description="fraction of all parameters of the model removed")
    macs: Fractions | None = Field(None, description="fraction of the multiply-accumulates of a forward pass removed")

    @model_validator(mode="after")
    def _one_kind(self) -> "TargetConfig":
        counts = self.neurons is not None or self.heads is not None
        given = [counts, self.parameters is not None, self.macs is not None]
        if sum(given) != 1:
            raise ValueError("target must be one of: neurons and / or heads, parameters, macs")
        lengths = {len(fractions) for fractions in self._lists().values()}
        if len(lengths) > 1:
            raise ValueError("target: lists of neurons and heads are taken in pairs, so they must be equally long")
        for name, fractions in self._lists().items():
            if sorted(set(fractions)) != fractions:
                raise ValueError(f"target.{name} must be a list that grows, e.g. [0.3, 0.5], for sizes are nested")
        return self

    def _lists(self) -> dict[str, list[float]]:
        return {name: value for name, value in self if isinstance(value, list)}

    def sizes(self) -> list["TargetConfig"]:
        """One target a size, from the largest model to the smallest."""
        lists = self._lists()
        count = len(next(iter(lists.values()), [0.0]))
        return [self.model_copy(update={name: values[n] for name, values in lists.items()}) for n in range(count)]

    def fractions(self) -> dict[str, float]:
        """Name -> fraction removed, of a target that is one size."""
        return {name: value for name, value in self if value is not None}

    def name(self) -> str:
        """A target that is one size in a word, e.g. neurons-0.5-heads-0.25."""
        return "-".join(f"{name}-{fraction:g}" for name, fraction in self.fractions().items())


class PruningConfig(Strict):
    """What may be removed, and how much."""

    arms: list[Literal["neuron", "head"]] = Field(["neuron", "head"], min_length=1, description="kinds of arms")
    block_size: int = Field(16, gt=0, description="neighbouring neurons that go together; 1 = single neurons")
    target: TargetConfig = Field(description="how much goes")
    layout: Literal["auto", "uniform", "per_layer"] = Field(
        "auto",
        description="uniform: same sizes in every layer, loads with plain AutoModel; per_layer: what the search found "
        "best; auto: uniform where the family can say it and it costs little quality on validation",
    )
    auto_tolerance: float = Field(
        0.02, ge=0.0, description="layout auto takes uniform if its validation loss is at most this fraction higher"
    )
    round_to: int | Literal["auto"] = Field(
        "auto", description="kept FFN widths are multiples of this; auto: 1, and 64 from hidden size 1024 on"
    )
    min_heads: int = Field(1, ge=1, description="heads (key-value groups) that every layer keeps at least")
    min_neurons: int = Field(1, ge=1, description="FFN neurons that every layer keeps at least")

    def sizes(self) -> list["PruningConfig"]:
        """The same settings for each size that the target lists, from the largest model to the smallest."""
        return [self.model_copy(update={"target": target}) for target in self.target.sizes()]

    def kinds(self) -> list[str]:
        """Kinds of arms that the target can remove: those that it names, or all under a budget of cost."""
        amounts = {"neuron": self.target.neurons, "head": self.target.heads}
        counted = any(amount is not None for amount in amounts.values())
        return [kind for kind in self.arms if not counted or amounts[kind] is not None]

    @model_validator(mode="after")
    def _target_has_arms(self) -> "PruningConfig":
        for kind, amount in (("neuron", self.target.neurons), ("head", self.target.heads)):
            if amount is not None and kind not in self.arms:
                raise ValueError(f"target.{kind}s is set, but arms does not contain {kind}")
        if isinstance(self.round_to, int) and self.round_to < 1:
            raise ValueError(f"round_to must be at least 1, got {self.round_to}")
        return self


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
        """With `refit` and what follows from it decided.

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
        """`rounds`, or what it is where it was left out."""
        return self.rounds or ROUNDS


class OutputConfig(Strict):
    """Where the result goes."""

    dir: str = Field(description="folder of the smaller checkpoint, its card and its report")
    overwrite: bool = Field(False, description="replace an existing folder")
    random_seeds: int = Field(3, ge=1, description="draws of the random control that the report shows")
    push_to_hub: str | None = Field(None, description="name on the Hub, owner/name, that the result is pushed to")
    log_with: list[str] = Field([], description="trackers of Accelerate: tensorboard, wandb, trackio, ...")
    log_dir: str | None = Field(None, description="folder for trackers that write files; null: DIR.logs")


class RecoveryConfig(Strict):
    """How a pruned model gets quality back: training on the calibration split, with the dense model as reference."""

    method: Literal["full", "lora"] = Field(
        "full", description="full: all weights are trained; lora: low-rank updates of what pruning cuts, merged after"
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
        0.5, ge=0.0, le=1.0, description="weight of the reference's outputs; 1 - alpha is that of the labels"
    )
    temperature: float = Field(2.0, gt=0, allow_inf_nan=False, description="of the softmax of reference and student")
    hidden_weight: float = Field(
        0.0, ge=0.0, allow_inf_nan=False, description="weight of the distance between hidden states after each layer"
    )
    lora_rank: int = Field(16, gt=0, description="rank of the updates of method lora")
    stages: int = Field(
        1,
        gt=0,
        description="above 1: the target is reached in so many steps, each cut, refitted and trained before the next "
        "search; they share epochs and max_steps",
    )


class PruneConfig(Strict):
    """Everything about one pruning run."""

    model: ModelConfig = Field(description="which model is pruned")
    task: TaskConfig = Field(description="the data and the kind of task")
    prune: PruningConfig = Field(description="what may be removed, and how much")
    search: SearchConfig = Field(SearchConfig(), description="how the arms are found")
    compensation: str | dict[str, Any] | None = Field(
        "least_squares",
        description="refit of what stays on calibration data: least_squares, mask_tuning, {name: ..., option: ...}; "
        "null: none",
    )
    recovery: RecoveryConfig | None = Field(
        None, description="training of what stays, with the dense model as reference; null: none"
    )
    output: OutputConfig = Field(description="where the result goes")
    seed: int = Field(0, ge=0, description="of everything random")

    @model_validator(mode="after")
    def _decide_refit(self) -> "PruneConfig":
        given = self.compensation
        name = given.get("name") if isinstance(given, dict) else given
        self.__dict__["search"] = self.search.resolved(name)
        return self

    @model_validator(mode="after")
    def _stages_make_one_size(self) -> "PruneConfig":
        if self.stages > 1 and len(self.prune.sizes()) > 1:
            raise ValueError(
                f"recovery.stages {self.stages} trains one model on the way to one size, got "
                f"{len(self.prune.sizes())} sizes: give one, or set recovery.stages to 1"
            )
        return self

    @property
    def stages(self) -> int:
        """In which the target is reached."""
        return self.recovery.stages if self.recovery else 1

    def to_yaml(self) -> str:
        """The exact, resolved config."""
        return yaml.safe_dump(self.model_dump(exclude_none=False), sort_keys=False)

    @classmethod
    def from_yaml(cls, path: str | Path) -> "PruneConfig":
        """Reads and checks a YAML file.

        Args:
            path: Of the file.

        Raises:
            ValueError: One line that names the wrong key and the nearest known one, or the rule that is broken.
        """
        return check(yaml.safe_load(Path(path).read_text()) or {})


class EvaluateConfig(Strict):
    """Which checkpoint is measured on what."""

    model: ModelConfig = Field(description="the checkpoint")
    task: TaskConfig = Field(description="the data and the kind of task")
    seed: int = Field(0, ge=0, description="of the draw of examples")


C = TypeVar("C", bound=Strict)


def check(settings: dict[str, Any]) -> PruneConfig:
    """Validates a nested dict of settings.

    Args:
        settings: The YAML file's content, defaults left out where they will do.

    Raises:
        ValueError: One line a fault.
    """
    return check_as(settings, PruneConfig)


def check_as(settings: dict[str, Any], kind: type[C]) -> C:
    """Validates a nested dict of settings of some kind, as `check` does.

    Raises:
        ValueError: One line a fault.
    """
    try:
        return kind.model_validate(settings)
    except ValidationError as error:
        raise ValueError("\n".join(dict.fromkeys(_explain(fault) for fault in error.errors()))) from None


def _explain(fault: Any) -> str:
    """One line for one pydantic fault: where, what is wrong, what was given."""
    where = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        return f"unknown key '{where}'.{nearest(str(fault['loc'][-1]), known_keys(fault['loc'][:-1]))}"
    if fault["type"] == "missing":
        return f"missing key '{where}'"
    given = "" if isinstance(fault["input"], dict | BaseModel) else f", got {fault['input']!r}"
    if fault["type"] == "value_error":
        message = fault["msg"].removeprefix("Value error, ")
        return f"{where}: {message}{given}" if where else f"{message}{given}"
    types = known_types()
    while where not in types and "." in where:  # pydantic goes on below the key, to items and alternatives
        where = where.rpartition(".")[0]
    return f"{where or 'a config'} must be {types.get(where, NAMES['object'])}{given}"


def known_keys(path: tuple[str | int, ...]) -> list[str]:
    """The keys that the config knows at a place."""
    part: type[BaseModel] = PruneConfig
    for step in path:
        part = _part_of(part.model_fields[str(step)].annotation) or part
    return list(part.model_fields)


def _part_of(annotation: Any) -> type[BaseModel] | None:
    """The part of a config that a field holds, or may hold; None for plain values."""
    kinds = [annotation, *get_args(annotation)]
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


@cache
def known_types(part: type[BaseModel] = PruneConfig, prefix: str = "") -> dict[str, str]:
    """Dotted path of every key -> what it may hold, in words, e.g. `an integer > 0, or null`."""
    schema = part.model_json_schema()
    types = {}
    for name, field in part.model_fields.items():
        types[prefix + name] = _type_text(schema["properties"][name])
        if inner := _part_of(field.annotation):
            types |= known_types(inner, f"{prefix}{name}.")
    return types


NAMES = {
    "string": "a string",
    "integer": "an integer",
    "number": "a number",
    "boolean": "true or false",
    "null": "null",
    "object": "a mapping",
}
LIMITS = {"exclusiveMinimum": ">", "minimum": ">=", "exclusiveMaximum": "<", "maximum": "<="}


def _type_text(schema: dict[str, Any]) -> str:
    """A JSON schema in words."""
    if "anyOf" in schema:
        return ", or ".join(_type_text(option) for option in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return " | ".join(schema.get("enum", [schema.get("const")]))
    if schema.get("type") == "array":
        words = _type_text(schema["items"])
        items = {"a string": "strings"}.get(words, words.replace("a number", "numbers"))
        return f"a {'non-empty ' if schema.get('minItems') else ''}list of {items}"
    limits = " and ".join(f"{sign} {schema[limit]:g}" for limit, sign in LIMITS.items() if limit in schema)
    return f"{NAMES[schema.get('type', 'object')]} {limits}".rstrip()
