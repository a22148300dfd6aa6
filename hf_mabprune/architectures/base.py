"""The contract of a model family: a declaration of its stacks and their sites; everything else follows from it.

Symbols: D hidden; F FFN neurons; H query heads; G key-value heads; Dh head size; E experts.
"""

import inspect
from abc import ABC
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from hf_mabprune.architectures.projections import matrix_of
from hf_mabprune.architectures.sites import WHOLE_LAYER, Site, SiteSpec, Stack, part_at
from hf_mabprune.arms import LAYER
from hf_mabprune.registry import Registry

UNSUPPORTED = (
    "model type '{name}' is not supported yet. Adding it is one file, in hf_mabprune/architectures/ or your own "
    '(--plugin FILE); CONTRIBUTING.md, "Add an architecture", has the recipe. Supported: {known}'
)
ARCHITECTURES: Registry[type["Architecture"]] = Registry("architecture", "hf_mabprune.architectures", UNSUPPORTED)
PRUNED_PREFIX = "mabprune_"
QUANTISED = (
    "the model is quantised: packed weights cannot be cut. Prune first, then quantise; or load it dequantised "
    "(model.dequantize: true)"
)


@dataclass(frozen=True, eq=False)
class Layer:
    """One layer of a model.

    Attributes:
        path: Of its module in the base model.
        stack: Declaration that it comes from.
        number: Its place in the stack.
        depth: Its place among all layers, in the order in which they run.
    """

    path: str
    stack: Stack
    number: int
    depth: int


class Architecture(ABC):
    """A family of model types that share module paths and config fields.

    A family states the class attributes below, and overrides `head_size` where its configs say it differently.

    Attributes:
        stacks: In the order in which they run; those that a model lacks are skipped.
        head_size_field: Config field that states Dh where it is not D / H; None where there is no such field.
        classifies_first: Whether classifiers read the first position alone.
    """

    stacks: ClassVar[tuple[Stack, ...]]
    head_size_field: ClassVar[str | None] = "head_dim"
    classifies_first: ClassVar[bool] = False

    def head_size(self, config: PreTrainedConfig, spec: SiteSpec) -> int:
        """Gives Dh, from the sizes that the model was built with.

        Args:
            config: Config of the stack.
            spec: Heads in question.
        """
        stated = getattr(config, self.head_size_field, None) if self.head_size_field else None
        return int(stated or config.hidden_size // getattr(config, spec.units))

    def layers(self, model: PreTrainedModel) -> list[Layer]:
        """Lists the layers of all stacks that a model has, in the order in which they run."""
        found: list[Layer] = []
        for stack in self.stacks:
            paths = [each for path in _expanded(model.base_model, stack.layers) for each in _listed(model, path)]
            found += [Layer(path, stack, number, len(found) + number) for number, path in enumerate(paths)]
        return found

    def sites(self, model: PreTrainedModel, empty: bool = False) -> list[Site]:
        """Lists all sites of a model in the order in which they run, with the sizes they have now.

        Args:
            model: Model of the family.
            empty: Whether those without a unit, of which nothing is left to look at, are among them.
        """
        found = (site for layer in self.layers(model) for site in self._sites_of(model, layer))
        return [site for site in found if site.units or empty]

    def whole_layers(self, model: PreTrainedModel) -> list[Site]:
        """Lists the layers that can go as a whole, each a site of its own.

        Those stay that run several times, or are read by something besides the next one; and the first of each kind
        of a stack, full attention or sliding window, which caches and position biases are asked of.
        """
        sites, seen = [], set()
        for layer in self.layers(model):
            types = getattr(layer.stack.config_of(model.config), "layer_types", None)
            kind = layer.path.rpartition(".")[0], types[layer.number] if types else None
            if kind in seen and not self.layers_stay(layer.stack):
                place = layer.stack, layer.number, layer.depth, f"{layer.path}."
                sites.append(Site(layer.path, LAYER, *place, WHOLE_LAYER, units=1))
            seen.add(kind)
        return sites

    @classmethod
    def layers_stay(cls, stack: Stack) -> str:
        """Says why no layer of a stack can go as a whole; empty where some can."""
        if stack.shared:
            return "one layer runs over and over"
        aside = stack.read_aside or not stack.count
        return "what a layer gives is read by something besides the next one" if aside else ""

    def least_units(self, model: PreTrainedModel, site: Site) -> int:
        """Counts the units that a site cannot do without: none where its block or layer can go whole, else one group,
        or the experts that a position is sent to."""
        if site.kind == LAYER:
            return 0
        if site.kind == "expert":
            return int(part_at(model.base_model, site.name).top_k)
        return 0 if site.spec.empties and not self._is_asked_for_length(model, site) else site.group

    def _is_asked_for_length(self, model: PreTrainedModel, site: Site) -> bool:
        """Says whether a key-value cache is asked at a site how many positions it holds: at the first attention of
        each kind of a decoder."""
        if site.kind != "head":
            return False
        config = site.stack.config_of(model.config)
        attention = model.base_model.get_submodule(site.prefix + next(iter(site.spec.empties)))
        arguments = inspect.signature(type(attention).forward).parameters
        decodes = getattr(attention, "is_decoder", getattr(config, "is_decoder", True))
        if "past_key_values" not in arguments or not decodes:
            return False
        types = getattr(config, "layer_types", None) or [None] * (site.layer + 1)
        return types[site.layer] not in types[: site.layer]

    def shares_layers(self, model: PreTrainedModel) -> bool:
        """Tells whether some layers of a model run several times in a pass."""
        return any(layer.stack.shared for layer in self.layers(model))

    def kept_whole(self, model: PreTrainedModel) -> dict[str, str]:
        """Says of which kinds a model has units that cannot be cut out, and why: kind -> reason."""
        reasons: dict[str, str] = {}
        for layer in self.layers(model):
            config = layer.stack.config_of(model.config)
            reasons |= {spec.kind: spec.reason for spec in layer.stack.sites if not spec.when(config)}
            reasons[LAYER] = self.layers_stay(layer.stack)
        return {kind: reason for kind, reason in reasons.items() if reason}

    def _sites_of(self, model: PreTrainedModel, layer: Layer) -> Iterator[Site]:
        base, prefix, config = model.base_model, f"{layer.path}.", layer.stack.config_of(model.config)
        for spec in layer.stack.sites:
            inside = f"{prefix}{spec.experts}." if spec.experts and spec.kind == "neuron" else prefix
            output = part_at(base, inside + spec.output)
            if output is None or not spec.when(config):
                continue
            place = layer.stack, layer.number, layer.depth, prefix, spec
            if spec.kind == "expert":
                yield Site(inside + spec.output, spec.kind, *place, units=len(output.weight))
            elif spec.experts:
                transposed = part_at(base, f"{prefix}{spec.experts}").is_transposed
                for expert in range(len(output)):
                    units = output.shape[1 if transposed else 2]
                    yield Site(f"{inside}{expert}", spec.kind, *place, units=units, expert=expert)
            else:
                size = self.head_size(config, spec) if spec.kind == "head" else 1
                group = int(getattr(config, spec.units) // getattr(config, spec.groups)) if spec.groups else 1
                shared = spec.groups is not None and getattr(config, spec.groups) == 1 < group
                whole = Site(inside + spec.output, spec.kind, *place, 0, size, 1 if shared else group, shared)
                yield replace(whole, units=matrix_of(output, whole.name).shape[1] // size)


def _expanded(base_model: nn.Module, path: str) -> list[str]:
    """Lists the paths of modules that a path with a `*` stands for."""
    before, star, after = path.partition(".*.")
    if not star:
        return [path]
    return [f"{before}.{number}.{after}" for number in range(len(part_at(base_model, before) or ()))]


def _listed(model: PreTrainedModel, path: str) -> list[str]:
    """Lists the paths of the layers in a list, or that of one layer; nothing where there is none."""
    part = part_at(model.base_model, path)
    if isinstance(part, nn.ModuleList):
        return [f"{path}.{number}" for number in range(len(part))]
    return [] if part is None else [path]


def architecture_of(model: PreTrainedModel) -> Architecture:
    """Finds the family of a model.

    Raises:
        ValueError: If the architecture is not supported, or the model is quantised or carries unmerged adapters.
    """
    if getattr(model, "is_quantized", False) or getattr(model.config, "quantization_config", None) is not None:
        raise ValueError(QUANTISED)
    if getattr(model, "_hf_peft_config_loaded", False) or hasattr(model, "peft_config"):
        raise ValueError("the model carries unmerged adapters. Merge them first (merge_and_unload)")
    return family_of(model.config)


def family_of(config: PreTrainedConfig) -> Architecture:
    """Finds the family that a config describes, before any weight is loaded.

    Raises:
        ValueError: If the architecture is not supported.
    """
    return ARCHITECTURES.get(str(config.model_type).removeprefix(PRUNED_PREFIX))()
