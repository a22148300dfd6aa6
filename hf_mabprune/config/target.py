"""How much is removed, and what may be removed."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from hf_mabprune.config.amounts import Amount, Fractions, Sizes, Times, in_units
from hf_mabprune.config.base import Place, Strict
from hf_mabprune.config.errors import part_of
from hf_mabprune.config.promise import PromiseConfig

CALIBRATION = "calibration"


class MemoryTarget(Strict):
    """How much of the memory goes that a loaded model takes: its weights, and a decoder's keys and values."""

    amount: Sizes = Field(
        description="fraction removed, or what may be left, e.g. 2GB; a list gives several sizes from one search"
    )
    batch: int = Field(1, gt=0, description="sequences whose keys and values are kept, for decoders")
    length: int | None = Field(None, gt=0, description="tokens of each of them; decoders need it, others keep nothing")


class LatencyTarget(Strict):
    """How much of the time of a pass goes, measured where the run is."""

    amount: Times = Field(
        description="fraction removed, or what may be left, e.g. 12ms; a list gives several sizes from one search"
    )
    batch: int = Field(1, gt=0, description="sequences, or other examples, of a pass")
    length: int | None = Field(
        None, gt=0, description="tokens of each sequence; null: as many as a calibration example has, on average"
    )
    phase: Literal["prefill", "decode"] = Field(
        "prefill",
        description="prefill: a pass over whole sequences; decode: over one more token, for decoders",
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="precision of the pass")
    engine: Literal["torch", "onnxruntime"] = Field("torch", description="what runs it; onnxruntime: text encoders")


class TargetConfig(Strict):
    """How much goes. Either neurons, heads and / or experts, or layers, or a cost such as parameters, MACs or bytes.

    Numbers are fractions removed; an amount with a unit, as 200MB, is what may be left. A list gives several sizes
    from one search; two lists are taken in pairs.
    """

    neurons: Fractions | None = Field(None, description="fraction of FFN neurons removed; a list gives several sizes")
    heads: Fractions | None = Field(None, description="fraction of attention heads (key-value groups) removed")
    experts: Fractions | None = Field(None, description="fraction of the experts of a mixture removed")
    layers: Fractions | None = Field(None, description="fraction of whole layers removed")
    parameters: Fractions | None = Field(None, description="fraction of all parameters of the model removed")
    layer_parameters: Fractions | None = Field(
        None, description="fraction of the parameters of FFNs and attentions removed: without embeddings and head"
    )
    macs: Fractions | None = Field(None, description="fraction of the multiply-accumulates of a forward pass removed")
    bytes: Sizes | None = Field(
        None, description="fraction of the bytes of the saved weights removed, or what they may have, e.g. 200MB"
    )
    memory: MemoryTarget | None = Field(
        None, description="part of the memory removed that weights, and a decoder's keys and values, take"
    )

    latency: LatencyTarget | None = Field(None, description="part of the time of a pass removed, as measured here")

    @model_validator(mode="before")
    @classmethod
    def _amounts_alone(cls, given: Any) -> Any:
        """Takes a plain amount for a target whose other settings are left out."""
        if not isinstance(given, dict):
            return given
        parts = {name for name, field in cls.model_fields.items() if part_of(field.annotation)}
        return {
            name: {"amount": value} if name in parts and isinstance(value, (float, str, list)) else value
            for name, value in given.items()
        }

    @model_validator(mode="after")
    def _one_kind(self) -> "TargetConfig":
        costs = [name for name in type(self).model_fields if f"{name[:-1]}" not in self.counted()]
        counts = any(amount is not None for amount in self.counted().values())
        if counts + sum(getattr(self, name) is not None for name in costs) != 1:
            raise ValueError(f"target must be one of: neurons, heads and / or experts, layers, {', '.join(costs)}")
        lengths = {len(amounts) for amounts in self._lists().values()}
        if len(lengths) > 1:
            raise ValueError("target: lists of neurons, heads, experts go together, so they must be equally long")
        for name, amounts in self._lists().items():
            _check_grows(name, amounts)
        return self

    def counted(self) -> dict[str, Fractions | None]:
        """Maps each kind of arms to the fraction of them that goes; None where they are not counted."""
        return {"neuron": self.neurons, "head": self.heads, "expert": self.experts, "layer": self.layers}

    def _lists(self) -> dict[str, list[Amount]]:
        return {name: amounts for name, amounts in self._given().items() if isinstance(amounts, list)}

    def _given(self) -> dict[str, Amount | list[Amount]]:
        """Maps what a target is of to its amounts."""
        given = {name: getattr(value, "amount", value) for name, value in self}
        return {name: amounts for name, amounts in given.items() if amounts is not None}

    def sizes(self) -> list["TargetConfig"]:
        """Gives one target a size, from the largest model to the smallest."""
        lists = self._lists()
        count = len(next(iter(lists.values()), [0.0]))
        return [self._of({name: amounts[n] for name, amounts in lists.items()}) for n in range(count)]

    def _of(self, amounts: Mapping[str, Amount]) -> "TargetConfig":
        """Gives the same target with other amounts."""
        parts = {name: getattr(self, name) for name in amounts}
        return self.model_copy(
            update={
                name: parts[name].model_copy(update={"amount": amount}) if isinstance(parts[name], Strict) else amount
                for name, amount in amounts.items()
            }
        )

    def amounts(self) -> dict[str, Amount]:
        """Maps what a target is of to the fraction removed, or to what may be left, of a target that is one size."""
        return {name: amount for name, amount in self._given().items() if not isinstance(amount, list)}

    def fractions(self) -> dict[str, float]:
        """Maps what a target is of to the fraction removed, of a target that is one size and of fractions."""
        return {name: amount for name, amount in self.amounts().items() if isinstance(amount, float)}

    def name(self) -> str:
        """Names a target that is one size in a word, e.g. neurons-0.5-heads-0.25."""
        return name_of(self.amounts())


def name_of(amounts: Mapping[str, Amount]) -> str:
    """Names a size in a word, e.g. neurons-0.5-heads-0.25 or bytes-200MB."""
    said = {name: f"{amount:g}" if isinstance(amount, float) else amount for name, amount in amounts.items()}
    return "-".join(f"{name}-{amount}".replace(" ", "") for name, amount in said.items())


def _check_grows(name: str, amounts: Sequence[Amount]) -> None:
    """Raises ValueError for sizes that are not nested, from the largest model to the smallest."""
    fractions = [amount for amount in amounts if isinstance(amount, float)]
    left = [in_units(amount) for amount in amounts if isinstance(amount, str)]
    if fractions and left:
        raise ValueError(f"target.{name} must be a list of fractions, or of amounts that may be left, not of both")
    if sorted(set(fractions)) != fractions:
        raise ValueError(f"target.{name} must be a list that grows, e.g. [0.3, 0.5], for sizes are nested")
    if sorted(set(left), reverse=True) != left:
        raise ValueError(f"target.{name} must be a list that falls, e.g. [300MB, 200MB], for sizes are nested")


class VocabularyConfig(Strict):
    """Which tokens stay. The others go before anything else is done, out of tokenizer, embeddings and head."""

    keep: Place | Annotated[list[Place], Field(min_length=1)] = Field(
        CALIBRATION,
        description="texts whose tokens stay: calibration, for the calibration split, or files of text (.parquet, "
        ".jsonl, .json and .csv: all columns of texts; others: plain text)",
    )
    min_count: int = Field(1, gt=0, description="a token stays that occurs so often in these texts")

    def files(self) -> list[str]:
        """Lists the files of text; none where the calibration split is meant."""
        named = [self.keep] if isinstance(self.keep, str) else self.keep
        return [] if named == [CALIBRATION] else named


class PruningConfig(Strict):
    """What may be removed, and how much."""

    arms: list[Literal["neuron", "head", "expert", "layer"]] = Field(
        ["neuron", "head"],
        min_length=1,
        description="kinds of arms; expert: whole experts of a mixture; layer: whole layers, which go alone",
    )
    block_size: int | None = Field(
        None,
        gt=0,
        description="neighbouring neurons that go together; null: 1, single neurons, for rule refit and criteria, and "
        "16 where neurons are pulled one by one: for other rules, or if search.pulls_per_arm is set",
    )
    target: TargetConfig = Field(description="how much goes")
    promise: PromiseConfig | None = Field(
        None, description="what the smallest size that is taken must not lose; null: all sizes are written"
    )
    layout: Literal["auto", "uniform", "per_layer"] = Field(
        "auto",
        description="uniform: same sizes in every layer, loads with plain AutoModel; per_layer: what the search found "
        "best; auto: uniform where the family can say it and it costs little quality on validation",
    )
    auto_tolerance: float = Field(
        0.02, ge=0.0, description="layout auto takes uniform if its validation loss is at most this fraction higher"
    )
    round_to: int | Literal["auto"] = Field(
        "auto",
        description="kept FFN widths are multiples of this; auto: 8 from hidden size 256 on, 64 from 1024 on, else 1",
    )
    tensor_parallel: int = Field(
        1,
        gt=0,
        description="devices that each layer will be shared out over when it is served: kept widths and heads "
        "(key-value groups) are multiples of this too",
    )
    min_heads: int = Field(
        1, ge=0, description="heads (key-value groups) that every layer keeps at least; 0 lets whole attentions go"
    )
    min_neurons: int = Field(1, ge=0, description="FFN neurons that every layer keeps at least; 0 lets whole FFNs go")
    vocabulary: VocabularyConfig | None = Field(
        None, description="cuts tokens that a corpus does not use, before the search; null: all stay"
    )

    def sizes(self) -> list["PruningConfig"]:
        """Gives the same settings for each size that the target lists, from the largest model to the smallest."""
        return [self.model_copy(update={"target": target}) for target in self.target.sizes()]

    def kinds(self) -> list[str]:
        """Names the kinds of arms that the target can remove: those that it counts, or all under a budget of cost."""
        counted = [kind for kind, amount in self.target.counted().items() if amount is not None]
        return counted or list(self.arms)

    @model_validator(mode="before")
    @classmethod
    def _counted_are_arms(cls, given: Any) -> Any:
        """Takes experts or layers for arms where the target counts them and nobody says what arms there are."""
        target = given.get("target") if isinstance(given, dict) and "arms" not in given else None
        if isinstance(target, dict) and target.get("experts") is not None:
            return {**given, "arms": ["neuron", "head", "expert"]}
        if isinstance(target, dict) and target.get("layers") is not None:
            return {**given, "arms": ["layer"]}
        return given

    @model_validator(mode="after")
    def _target_has_arms(self) -> "PruningConfig":
        for kind, amount in self.target.counted().items():
            if amount is not None and kind not in self.arms:
                raise ValueError(f"target.{kind}s is set, but arms does not contain {kind}")
        if "layer" in self.kinds() and len(self.kinds()) > 1:
            raise ValueError(
                "layers hold all other arms, so they go alone: set arms: [layer], e.g. with target: {layers: 0.25}, "
                "and prune the result again"
            )
        if {"neuron", "expert"} <= set(self.kinds()) and not any(self.target.counted().values()):
            raise ValueError(
                "arms: experts hold neurons, whose cost would count twice: leave one of them out, or set "
                "target.neurons and target.experts in the place of a cost such as parameters"
            )
        if isinstance(self.round_to, int) and self.round_to < 1:
            raise ValueError(f"round_to must be at least 1, got {self.round_to}")
        return self
