"""The contract of a model family: a declaration of its sites; everything else follows from it.

Symbols: L layers; D hidden; F FFN neurons; H query heads; G key-value heads; Dh head size.
"""

import copy
from abc import ABC
from collections.abc import Iterator, Mapping
from typing import ClassVar

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from hf_mabprune.architectures.sites import Site, SiteSpec, linear_at
from hf_mabprune.registry import Registry

ARCHITECTURES: Registry[type["Architecture"]] = Registry("architecture", "hf_mabprune.architectures")
PRUNED_PREFIX = "mabprune_"
QUANTISED = "the model is quantised: packed weights cannot be cut. Prune first, then quantise"


class Architecture(ABC):
    """A family of model types that share module paths and config fields.

    A family states the class attributes below, and overrides a method where its configs say something differently.

    Attributes:
        layers: Path of the layer list in the base model.
        ffn: Where the FFN neurons of a layer are.
        attention: Where the heads of a layer are.
        attention_block: Module of a layer whose output FFN arms of that layer cannot change.
        classifies_first: Whether classifiers read the first position alone.
        width_field: Config field of F.
        heads_field: Config field of H.
        groups_field: Config field of G; None where every query head has keys and values of its own.
        bias_fields: Kind -> config field that gives all projections of such sites a bias, where they have none
            without it.
    """

    layers: ClassVar[str]
    ffn: ClassVar[SiteSpec]
    attention: ClassVar[SiteSpec]
    attention_block: ClassVar[str]
    classifies_first: ClassVar[bool] = False
    width_field: ClassVar[str] = "intermediate_size"
    heads_field: ClassVar[str] = "num_attention_heads"
    groups_field: ClassVar[str | None] = None
    bias_fields: ClassVar[Mapping[str, str]] = {}

    def head_size(self, config: PretrainedConfig) -> int:
        """Gives Dh, from the sizes that the model was built with."""
        return int(config.hidden_size // getattr(config, self.heads_field))

    def group_size(self, config: PretrainedConfig) -> int:
        """Counts the query heads that share one key-value head, H / G."""
        return int(getattr(config, self.heads_field) // getattr(config, self.groups_field)) if self.groups_field else 1

    def sites(self, model: PreTrainedModel) -> list[Site]:
        """Lists all sites of a model, FFN and attention of each layer in turn, with the sizes they have now."""
        return [site for layer in range(len(self.layer_list(model))) for site in self._layer_sites(model, layer)]

    def layer_list(self, model: PreTrainedModel) -> nn.ModuleList:
        """Gives the layers of the base model, L of them."""
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

    def layer_fields(self, site: Site, units: int) -> dict[str, int]:
        """Gives the config fields, in the family's own names, that describe a site with a number of units."""
        if site.kind == "neuron":
            return {self.width_field: units}
        fields = {self.heads_field: units}
        if self.groups_field:
            fields[self.groups_field] = units // site.group
        return fields

    def uniform_config(self, config: PretrainedConfig, width: int, heads: int) -> PretrainedConfig:
        """Makes a stock config that describes the same sizes in every layer.

        Args:
            config: Config of the dense model; it is not changed.
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


def architecture_of(model: PreTrainedModel) -> Architecture:
    """Finds the family of a model.

    Raises:
        ValueError: If the architecture is not supported, or the model is quantised or carries unmerged adapters.
    """
    if getattr(model, "is_quantized", False):
        raise ValueError(QUANTISED)
    if getattr(model, "_hf_peft_config_loaded", False) or hasattr(model, "peft_config"):
        raise ValueError("the model carries unmerged adapters. Merge them first (merge_and_unload)")
    return family_of(model.config)


def family_of(config: PretrainedConfig) -> Architecture:
    """Finds the family that a config describes, before any weight is loaded.

    Raises:
        ValueError: If the architecture is not supported, or the weights are quantised.
    """
    if getattr(config, "quantization_config", None) is not None:
        raise ValueError(QUANTISED)
    return ARCHITECTURES.get(str(config.model_type).removeprefix(PRUNED_PREFIX))()
