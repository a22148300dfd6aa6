"""The contract of a model family: a declaration of its sites; everything else follows from it.

Symbols: L layers; D hidden; F FFN neurons; H query heads; G key-value heads; Dh head size; T tokens.

A site is the input of one output projection: F columns of the FFN's, or H * Dh columns of the attention's. Masking a
column there equals removing it together with the rows of the projections that produce it.
"""

import copy
from abc import ABC
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from hf_mabprune.arms import ArmTable
from hf_mabprune.registry import Registry

ARCHITECTURES: Registry[type["Architecture"]] = Registry("architecture", "hf_mabprune.architectures")
PRUNED_PREFIX = "mabprune_"
QUANTISED = "the model is quantised: packed weights cannot be cut. Prune first, then quantise"


@dataclass(frozen=True)
class SiteSpec:
    """Where one kind of arm lives inside a layer; module paths are relative to the layer.

    Attributes:
        output: The projection whose input columns are the units.
        per_unit: Projections with one block of output rows a unit (FFN inputs, queries).
        per_group: Projections with one block of output rows a group of units (keys, values).
        attributes: Module path -> attribute -> which size it holds: `units`, `groups` or `columns`.
        block: The largest module whose output (or the first of its outputs) is that of the projection; the projection
            itself when left out.
        feeds: Modules outside the block that do nothing but feed it.
    """

    output: str
    per_unit: tuple[str, ...]
    per_group: tuple[str, ...] = ()
    attributes: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    block: str | None = None
    feeds: tuple[str, ...] = ()


@dataclass(frozen=True)
class Site:
    """One site of one model; module paths are relative to the base model.

    Attributes:
        kind: `neuron` or `head`.
        layer: Number of the layer.
        units: F neurons, or H query heads.
        unit_size: Columns a unit has in the output projection: 1, or Dh.
        group: Units that can only go together: 1, or H / G.
        block, feeds: As in `SiteSpec`.
    """

    kind: str
    layer: int
    output: str
    per_unit: tuple[str, ...]
    per_group: tuple[str, ...]
    attributes: Mapping[str, Mapping[str, str]] = field(hash=False)
    units: int
    unit_size: int
    group: int
    block: str
    feeds: tuple[str, ...]

    def sizes(self, units: int) -> dict[str, int]:
        """The sizes that go with a number of units."""
        return {"units": units, "groups": units // self.group, "columns": units * self.unit_size}

    def linears(self) -> tuple[str, ...]:
        """Every projection that a cut of this site touches."""
        return (*self.per_unit, *self.per_group, self.output)


class Architecture(ABC):
    """A family of model types that share module paths and config fields."""

    layers: ClassVar[str]  # path of the layer list in the base model
    ffn: ClassVar[SiteSpec]
    attention: ClassVar[SiteSpec]
    attention_block: ClassVar[str]  # module of a layer whose output FFN arms of that layer cannot change
    classifies_first: ClassVar[bool] = False  # whether classifiers read the first position alone
    width_field: ClassVar[str] = "intermediate_size"
    heads_field: ClassVar[str] = "num_attention_heads"
    groups_field: ClassVar[str | None] = None
    # Kind -> config field that gives all projections of such sites a bias, where they have none without it.
    bias_fields: ClassVar[Mapping[str, str]] = {}

    def head_size(self, config: PretrainedConfig) -> int:
        """Dh, from the sizes that the model was built with."""
        return int(config.hidden_size // getattr(config, self.heads_field))

    def group_size(self, config: PretrainedConfig) -> int:
        """Query heads that share one key-value head."""
        return int(getattr(config, self.heads_field) // getattr(config, self.groups_field)) if self.groups_field else 1

    def sites(self, model: PreTrainedModel) -> list[Site]:
        """All sites of a model, FFN and attention of each layer in turn, with the sizes they have now."""
        return [site for layer in range(len(self.layer_list(model))) for site in self._layer_sites(model, layer)]

    def layer_list(self, model: PreTrainedModel) -> nn.ModuleList:
        """The layers of the base model."""
        layers = model.base_model.get_submodule(self.layers)
        assert isinstance(layers, nn.ModuleList)
        return layers

    def _layer_sites(self, model: PreTrainedModel, layer: int) -> Iterator[Site]:
        prefix = f"{self.layers}.{layer}."
        head_size, group = self.head_size(model.config), self.group_size(model.config)
        for kind, spec, unit_size, group_size in (
            ("neuron", self.ffn, 1, 1),
            ("head", self.attention, head_size, group),
        ):
            columns = linear_at(model, prefix + spec.output).in_features
            yield Site(
                kind=kind,
                layer=layer,
                output=prefix + spec.output,
                per_unit=tuple(prefix + path for path in spec.per_unit),
                per_group=tuple(prefix + path for path in spec.per_group),
                attributes={prefix + path: names for path, names in spec.attributes.items()},
                units=columns // unit_size,
                unit_size=unit_size,
                group=group_size,
                block=prefix + (spec.block or spec.output),
                feeds=tuple(prefix + path for path in spec.feeds),
            )

    def arm_table(self, model: PreTrainedModel, kinds: list[str], block_size: int, tokens: int) -> ArmTable:
        """Every arm of a model, with its costs.

        Args:
            model: The model as it is now.
            kinds: Kinds of arms wanted.
            block_size: Neighbouring neurons that make one arm; the last block of a layer may be smaller.
            tokens: T, length of the sequence that MACs are counted for.
        """
        rows = []
        for site in sorted(self.sites(model), key=lambda site: (site.kind != "neuron", site.layer)):
            if site.kind not in kinds:
                continue
            step = block_size if site.kind == "neuron" else site.group
            per_unit, macs_per_unit = self._unit_cost(model, site, tokens)
            for index, start in enumerate(range(0, site.units, step)):
                stop = min(start + step, site.units)
                units = stop - start
                rows.append(
                    (site.kind, site.layer, index, start, stop, round(per_unit * units), round(macs_per_unit * units))
                )
        kind, *numbers = zip(*rows, strict=True)
        return ArmTable(np.array(kind), *(np.array(column, dtype=np.int64) for column in numbers))

    def _unit_cost(self, model: PreTrainedModel, site: Site, tokens: int) -> tuple[float, float]:
        """Parameters and MACs that go with one unit; shared key and value rows count 1 / group each."""
        parameters = weights = 0.0
        for path in site.linears():
            linear = linear_at(model, path)
            rows = site.unit_size / (site.group if path in site.per_group else 1)
            if path == site.output:
                weights += linear.out_features * site.unit_size
            else:
                weights += linear.in_features * rows
                parameters += rows if linear.bias is not None else 0
        attention = 2 * tokens * tokens * site.unit_size if site.kind == "head" else 0
        return parameters + weights, weights * tokens + attention

    def layer_fields(self, site: Site, units: int) -> dict[str, int]:
        """The config fields, in the family's own names, that describe a site of a given size."""
        if site.kind == "neuron":
            return {self.width_field: units}
        fields = {self.heads_field: units}
        if self.groups_field:
            fields[self.groups_field] = units // site.group
        return fields

    def uniform_config(self, config: PretrainedConfig, width: int, heads: int) -> PretrainedConfig:
        """A stock config that describes the same sizes in every layer.

        Args:
            config: Of the dense model; it is not changed.
            width: F in every layer.
            heads: H in every layer.

        Raises:
            ValueError: If the family's config cannot say it, with the reason and the remedy.
        """
        new = copy.deepcopy(config)
        setattr(new, self.width_field, width)
        if heads != getattr(config, self.heads_field):
            self.set_uniform_heads(new, heads)
        return new

    def set_uniform_heads(self, config: PretrainedConfig, heads: int) -> None:
        """Writes another number of query heads into a stock config, or raises ValueError with the reason."""
        raise ValueError(
            f"a stock {config.model_type} config cannot say {heads} heads of {self.head_size(config)}: its head size "
            f"is {config.hidden_size} / heads. Use layout per_layer, or prune neurons only"
        )


def linear_at(model: PreTrainedModel, path: str) -> nn.Linear:
    """The Linear module at a path of the base model.

    Raises:
        ValueError: If another kind of module is there.
    """
    linear = model.base_model.get_submodule(path)
    if not isinstance(linear, nn.Linear):
        raise ValueError(f"{path} is a {type(linear).__name__}, not an nn.Linear: its weights cannot be cut")
    return linear


def architecture_of(model: PreTrainedModel) -> Architecture:
    """The family of a model.

    Raises:
        ValueError: If the architecture is not supported, or the model is quantised or carries unmerged adapters.
    """
    if getattr(model, "is_quantized", False):
        raise ValueError(QUANTISED)
    if getattr(model, "_hf_peft_config_loaded", False) or hasattr(model, "peft_config"):
        raise ValueError("the model carries unmerged adapters. Merge them first (merge_and_unload)")
    return family_of(model.config)


def family_of(config: PretrainedConfig) -> Architecture:
    """The family that a config describes, before any weight is loaded.

    Raises:
        ValueError: If the architecture is not supported, or the weights are quantised.
    """
    if getattr(config, "quantization_config", None) is not None:
        raise ValueError(QUANTISED)
    return ARCHITECTURES.get(str(config.model_type).removeprefix(PRUNED_PREFIX))()
