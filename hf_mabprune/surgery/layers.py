"""Takes whole layers out of a model: the modules, and what its config says of each layer.

Symbols: L layers of a stack.
"""

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from hf_mabprune.architectures import Layer, architecture_of
from hf_mabprune.architectures.sites import Stack
from hf_mabprune.arms import KeepIndices
from hf_mabprune.checkpoints.modeling_pruned import PerLayerConfig
from hf_mabprune.surgery.configs import PARTS, rebuilt

BY_LAYER = ("layer_types", "mlp_layer_types", "no_rope_layers")  # config fields of L entries
NUMBERS = ("mlp_only_layers",)  # config fields that list some layers by number
FIRST = ("first_k_dense_replace", "max_window_layers", "num_dense_layers")  # config fields that count the first
STAGES = ("stage_names", "out_features", "out_indices")  # config fields that name all layers, and some to be handed on
NUMBER = "layer_idx"  # attribute of modules that know which layer they are in
PASSING = {"training", "gradient_checkpointing"}  # attributes of modules that say nothing of a model
Scalar = bool | int | float | str | None


class Stay:
    """Says which layers of each stack stay, and what they are called without the others.

    Args:
        dense: Model before the cut.
        gone: Names of the layers that go.
    """

    def __init__(self, dense: PreTrainedModel, gone: Collection[str]) -> None:
        everything = architecture_of(dense).layers(dense)
        self.gone = [layer for layer in everything if layer.path in gone]
        # Those that stay, by the list that they are in.
        self.lists: dict[str, list[Layer]] = {_list_of(layer.path): [] for layer in self.gone}
        for layer in everything:
            if layer.path not in gone and (path := _list_of(layer.path)) in self.lists:
                self.lists[path].append(layer)

    def numbers(self, stack: Stack) -> list[int]:
        """Lists the numbers that the layers of a stack had which stay."""
        return next([layer.number for layer in layers] for layers in self.lists.values() if layers[0].stack is stack)

    def renamed(self, path: str) -> str | None:
        """Gives the name that a module or parameter of the base model has from now on; None where it is gone."""
        for start, layers in self.lists.items():
            if path.startswith(f"{start}."):
                number, dot, rest = path.removeprefix(f"{start}.").partition(".")
                places = {str(layer.number): place for place, layer in enumerate(layers)}
                return f"{start}.{places[number]}{dot}{rest}" if number in places else None
        return path


def _list_of(path: str) -> str:
    """Gives the path of the list that a layer is in."""
    return path.rpartition(".")[0]


def layers_gone(dense: PreTrainedModel, keep: KeepIndices) -> tuple[list[str], KeepIndices]:
    """Tells the layers that go as a whole from the rest of what stays.

    Args:
        dense: Supported model.
        keep: Unit indices that stay, by name of the site.

    Returns:
        Their names, and `keep` of the other sites.

    Raises:
        ValueError: If a layer cannot go.
    """
    architecture = architecture_of(dense)
    layers = {layer.path for layer in architecture.layers(dense)}
    gone = [name for name, units in keep.items() if name in layers and not len(units)]
    if stays := sorted({*gone} - {site.name for site in architecture.whole_layers(dense)}):
        raise ValueError(
            f"{stays[0]} must stay: the first layer of each kind does, which caches and position biases are asked of, "
            "and all that run several times or are read by something besides the next one"
        )
    return gone, {name: units for name, units in keep.items() if name not in layers}


def names_after(dense: PreTrainedModel, keep: KeepIndices) -> Callable[[str], str]:
    """Gives what says how a module that stays is called once some layers have gone, by its name in the dense model."""
    stay = Stay(dense, layers_gone(dense, keep)[0])
    return lambda path: stay.renamed(path) or path


def shorter_config(config: PreTrainedConfig, stay: Stay) -> PreTrainedConfig:
    """Copies a config with fewer layers; what it says of each layer, or by numbers of layers, follows.

    Args:
        config: Stock config, or that of a per-layer model.
        stay: Layers that stay.
    """
    settings = {name: value for name, value in config.to_dict().items() if name not in STAGES}
    for stack in {layer.stack: None for layer in stay.gone}:
        numbers, of_stack = stay.numbers(stack), stack.config_of(config)
        own = settings[stack.config] if of_stack is not config else settings
        count = of_stack.attribute_map.get(stack.count, stack.count)
        _shorten(own, numbers, count)
    if isinstance(config, PerLayerConfig):
        settings["mabprune"] = _renamed(config.mabprune, stay)
        if by_layer := settings.get("per_layer_config"):
            fields = {int(number): values for number, values in by_layer.items()}
            numbers = stay.numbers(stay.gone[0].stack)
            settings["per_layer_config"] = {
                place: fields[number] for place, number in enumerate(numbers) if number in fields
            }
    return rebuilt(config, settings)


def _shorten(settings: dict[str, Any], numbers: Sequence[int], count: str) -> None:
    """Lets the settings of a stack speak of the layers that stay, in place."""
    before = settings[count]
    settings[count] = len(numbers)
    for name in BY_LAYER:
        values = settings.get(name)
        if isinstance(values, list) and len(values) == before:
            settings[name] = [values[number] for number in numbers]
    for name in NUMBERS:
        if settings.get(name):
            settings[name] = [place for place, number in enumerate(numbers) if number in settings[name]]
    for name in FIRST:
        if isinstance(first := settings.get(name), int):
            settings[name] = sum(number < first for number in numbers)


def _renamed(plan: Mapping[str, Any], stay: Stay) -> dict[str, Any]:
    """Gives a plan of sizes with the paths that modules have from now on."""
    moved = dict(plan)
    for part in ("parameters", *PARTS):
        entries = plan.get(part, {})
        if part == "copies":
            entries = {path: stay.renamed(source) for path, source in entries.items()}
        moved[part] = {new: entry for path, entry in entries.items() if (new := stay.renamed(path)) is not None}
    return moved


def without_layers(
    dense: PreTrainedModel, stay: Stay, config: PreTrainedConfig, passing: bool = False
) -> PreTrainedModel:
    """Copies a model without some layers; the dense model stays as it is, and the copy has its class.

    Args:
        dense: Supported model.
        stay: Layers that stay.
        config: Config of the copy.
        passing: Whether the copy shares its matrices with the dense model.
    """
    copies: dict[int, Any] = {id(dense.config): config}
    copies |= {id(getattr(dense.config, name)): getattr(config, name) for name in config.sub_configs}
    copies |= {id(dense.base_model.get_submodule(layer.path)): nn.Identity() for layer in stay.gone}
    if passing:
        shared = [matrix for matrix in dense.parameters() if matrix.ndim > 1]
        copies |= {id(matrix): nn.Parameter(matrix.detach(), matrix.requires_grad) for matrix in shared}
    small = copy.deepcopy(dense, copies)
    for path, layers in stay.lists.items():
        modules: Any = small.base_model.get_submodule(path)
        owner, _, name = path.rpartition(".")
        kept = [modules[layer.number] for layer in layers]
        setattr(small.base_model.get_submodule(owner), name, nn.ModuleList(kept))
        for place, (layer, module) in enumerate(zip(layers, kept, strict=True)):
            for part in module.modules():
                if vars(part).get(NUMBER) == layer.number:
                    setattr(part, NUMBER, place)
    return small


def check_built(small: PreTrainedModel, stay: Stay) -> None:
    """Refuses a model without some layers that its config does not say: it is built on the meta device, and all shapes
    and the settings in its layers compared.

    Raises:
        ValueError: With what differs.
    """
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        built = type(small)(copy.deepcopy(small.config))
    said, there = _facts(built, stay), _facts(small, stay)
    for name in sorted(said.keys() | there.keys()):
        if said.get(name) != there.get(name):
            raise ValueError(
                f"a {small.config.model_type} config cannot say that {stay.gone[0].path} is gone: it makes {name} "
                f"{said.get(name)}, not {there.get(name)}"
            )


def _facts(model: PreTrainedModel, stay: Stay) -> dict[str, Any]:
    """Lists the shapes of all weights, and the settings of the modules in its layers."""
    found: dict[str, Any] = {name: list(weight.shape) for name, weight in model.state_dict(keep_vars=True).items()}
    for path in stay.lists:
        for name, module in model.base_model.get_submodule(path).named_modules():
            values = {key: value for key, value in vars(module).items() if isinstance(value, Scalar)}
            found |= {
                f"{path}.{name}.{key}": value
                for key, value in values.items()
                if key not in PASSING and not key.startswith("_")
            }
    return found
