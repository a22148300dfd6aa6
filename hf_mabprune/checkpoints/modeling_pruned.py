"""Transformers models whose layers have sizes of their own, as written by hf_mabprune.

This one file travels inside every per-layer checkpoint. It needs torch and transformers only, knows no model family,
and holds no weights: it builds the stock model and then gives it the sizes of a plan, before the weights are loaded.
The plan is `mabprune` in the checkpoint's config.json. Paths are relative to the base model; every key but `format`
may be missing:

    format      3
    parameters  {parameter: shape}                   a bias that the stock constructor leaves out, too; a buffer
    attributes  {module: {attribute: size}}          beside those that a Linear, a Conv1D or an Embedding has of itself
    settings    {module: {config field: size}}       fields that its forward reads from its config
    arguments   {module: {argument: kept indices}}   of dimension 1 of what its forward is given; null: it gets None
    copies      {module: module}                     where the stock model has none, an own copy of that one
    empty       {module: number of outputs}          without a unit: it gives the bias of its projection, or nothing

A plan is data, and not trusted: names come from closed lists, sizes never grow, everything else is refused.

`MabpruneBertForSequenceClassification` is transformers' `BertForSequenceClassification` with such sizes; the classes
are made on demand, by name, for any model in transformers.
"""

import copy
import functools
import inspect
from collections.abc import Iterator
from typing import Any, NoReturn

import transformers
from torch import nn
from transformers import CONFIG_MAPPING, AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto
from transformers.pytorch_utils import Conv1D

FORMAT = 3
CLASS_PREFIX = "Mabprune"
TYPE_PREFIX = "mabprune_"

EXPERTS = {"num_experts", "num_local_experts"}
BUFFERS = {"e_score_correction_bias"}  # that are cut like parameters
FLAGS = {"has_relative_attention_bias"}  # true, where there is a relative_attention_bias
NAMES = {  # all that a plan can write to, by its keys
    "attributes": {"num_attention_heads", "num_key_value_heads", "num_heads", "n_heads", "all_head_size", "inner_dim"}
    | {"dim", "split_size", "intermediate_size", "intermediate_dim", "num_key_value_groups", *EXPERTS, *FLAGS},
    "settings": {"num_attention_heads", "num_key_value_heads"},
    "arguments": {"position_bias"},
    "copies": {"relative_attention_bias"},
}
NO_SIZES = {"sliding_window", "attention_chunk_size", "skip"}  # what transformers reads of per_layer_config besides
KEYS = {1: ("modules", "biases", "attributes"), 2: ("parameters", *NAMES), 3: ("parameters", *NAMES, "empty")}
OUTPUTS = (1, 2, 3)  # that a module may have
STACKS = {"encoder", "decoder", "text_model", "vision_model"}  # some task heads have one of two
PROJECTIONS = (nn.Linear, Conv1D)
LAYERS = (  # class, what it says of its weight's shape, dimension of its outputs
    (nn.Linear, ("out_features", "in_features"), 0),
    (Conv1D, ("nx", "nf"), 1),
    (nn.Embedding, ("num_embeddings", "embedding_dim"), 1),
)
Cuts = set[tuple[int, int]]
_classes: dict[str, type] = {}


class PerLayerConfig:
    """Is mixed into a stock config class: global values stay readable although layers differ."""

    allow_global_per_layer_attribute_access = True

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        # Every way to a config passes here; transformers gives its subclasses an __init__ that would skip one of ours.
        if kwargs.get("mabprune") is not None:
            read_plan(kwargs["mabprune"])
        _check_fields(kwargs.get("per_layer_config") or {})
        _register_models(cls)
        return super().__new__(cls)

    def __getattribute__(self, key: str) -> Any:
        # The stock constructors read the original sizes here; the per-layer ones follow from the plan.
        names = object.__getattribute__(self, "attribute_map")
        return object.__getattribute__(self, names.get(key, key))


class PerLayerModel:
    """Is mixed into a stock model class: after the stock constructor, the planned parameters get their shapes."""

    def __init__(self, config: PretrainedConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)  # type: ignore[call-arg]
        if getattr(config, "mabprune", None) is not None:
            resize(self.base_model, config.mabprune)  # type: ignore[attr-defined]


def read_plan(plan: Any) -> dict[str, Any]:
    """Checks a plan as far as that goes without a model.

    Args:
        plan: `mabprune` of a config, of format 1, 2 or 3.

    Returns:
        The plan in format 3.

    Raises:
        ValueError: If this file does not read its format, or it says what no cut needs.
    """
    version = _mapping(plan, "").get("format")
    if type(version) is not int or version < 1:
        _refuse("format", f"must be 1, 2 or 3, got {_short(version)}")
    if version > FORMAT:
        raise ValueError(
            f"this checkpoint has hf_mabprune format {_short(version)}, this file reads formats 1 to 3: update "
            "hf_mabprune, "
            "or load with trust_remote_code=True the file beside it (without importing hf_mabprune)"
        )
    if unknown := sorted(plan.keys() - {"format", *KEYS[version]}):
        _refuse(f"{_short(unknown[0])}", f"format {version} has {', '.join(KEYS[version])}")
    plan = _from_format_1(plan) if version == 1 else plan
    empty = _mapping(plan.get("empty", {}), "empty")
    sizes: dict[str, set[int]] = {}  # path of a module -> dimensions of the planned parameters in it
    for path, shape in _mapping(plan.get("parameters", {}), "parameters").items():
        places = [path[:place] for place, letter in enumerate(path) if letter == "."]
        if not _are_ints(shape, 0 if any(place in empty for place in places) else 1) or len(shape) > 4:
            _refuse("parameters", f"must be a shape of 1 to 4 positive integers, got {_short(shape)}", path)
        for place in places:
            sizes.setdefault(place, set()).update(shape)
    for path, outputs in empty.items():
        if type(outputs) is not int or outputs not in OUTPUTS:
            _refuse(
                "empty", f"must be the number of outputs, {OUTPUTS[0]} to {OUTPUTS[-1]}, got {_short(outputs)}", path
            )
        if 0 not in sizes.get(path, ()):
            _refuse("empty", "no planned parameter in that module has a size of 0", path)
    for section in ("attributes", "settings"):
        for path, name, value in _entries(plan, section):
            if name in FLAGS:
                if value is not True:
                    _refuse(section, f"{name} can only be true, got {_short(value)}", path)
                continue
            inside = sizes.get(_place(path, name, sizes), set())
            if not _are_ints([value], 1) or not any(size % value == 0 for size in inside):
                why = "must be a dimension of a planned parameter in that module, or divide one"
                _refuse(section, f"{name} {why}, got {_short(value)}", path)
    for path, name, kept in _entries(plan, "arguments"):
        if kept is not None and not (_are_ints(kept, 0) and len(set(kept)) == len(kept)):
            _refuse("arguments", f"{name} must be null or indices from 0 on, each once, got {_short(kept)}", path)
    for path, source in _mapping(plan.get("copies", {}), "copies").items():
        for each in (path, source):
            if not isinstance(each, str) or each.rpartition(".")[2] not in NAMES["copies"]:
                _refuse("copies", f"only {', '.join(NAMES['copies'])} can be copied, got {_short(each)}", path)
    return {"format": FORMAT, **{key: plan[key] for key in KEYS[FORMAT] if key in plan}}


def resize(base_model: nn.Module, plan: dict[str, Any], dense: nn.Module | None = None) -> None:
    """Gives a base model the sizes of a plan, in place; where they are right already, nothing changes.

    A parameter that gets smaller keeps its first entries; a new bias is zero.

    Args:
        base_model: Model as its stock constructor leaves it, or cut already.
        plan: Plan that `read_plan` can read.
        dense: Model that it was cut from, where parameters of `base_model` have the sizes of the plan already.

    Raises:
        ValueError: If `read_plan` refuses the plan, or it does not fit the model.
    """
    read, missing = read_plan(plan), STACKS - base_model._modules.keys()
    planned = {
        key: {path: entry for path, entry in read.get(key, {}).items() if path.partition(".")[0] not in missing}
        for key in KEYS[FORMAT]
    }
    before = {
        path: list(parameter.shape)
        for path, parameter in (dense or base_model).named_parameters(remove_duplicate=False)
        if path in planned["parameters"]
    }
    fresh = {path for path, source in planned["copies"].items() if _give_copy(base_model, path, source)}
    shapes: dict[str, dict[str, list[int]]] = {}
    for path, shape in planned["parameters"].items():
        owner, _, name = path.rpartition(".")
        shapes.setdefault(owner, {})[name] = shape
    for path, own in shapes.items():
        # A copy in a model that is cut already may have to be larger than what it is a copy of.
        around = _module(base_model, "copies", path.rpartition(".")[0]) if path in fresh else nn.Module()
        limit = max((size for parameter in around.parameters() for size in parameter.shape), default=0)
        _give_shapes(_module(base_model, "parameters", path), path, own, limit)
    for path, values in planned["attributes"].items():
        module = _module(base_model, "attributes", path)
        for name, value in values.items():
            cuts = _cuts(before, planned["parameters"], path, name)
            _check_change("attributes", path, module, name, value, cuts)
            setattr(module, name, value)
    for path, values in planned["settings"].items():
        module = _module(base_model, "settings", path)
        config = getattr(module, "config", None)
        shared = config._shared if isinstance(config, _Settings) else config
        for name, value in values.items():
            cuts = _cuts(before, planned["parameters"], path, name)
            _check_change("settings", path, config, name, value, cuts)
        module.config = _Settings(shared, values)
    heads = getattr(getattr(base_model, "config", None), "num_attention_heads", None)
    for path, values in planned["arguments"].items():
        _give_arguments(_module(base_model, "arguments", path), path, values, heads)
    for path, outputs in planned["empty"].items():
        _empty(_module(base_model, "empty", path), path, outputs)


def _give_copy(base_model: nn.Module, path: str, source: str) -> bool:
    """Gives a module an own copy of what another one has; says whether it had none."""
    (owner, _, name), (other, _, _) = path.rpartition("."), source.rpartition(".")
    module, original = _module(base_model, "copies", owner), _module(base_model, "copies", source)
    if type(module) is not type(_module(base_model, "copies", other)):
        _refuse("copies", f"{_short(source)} is in a module of another class", path)
    if module._modules.get(name) is not None:
        return False
    setattr(module, name, copy.deepcopy(original))
    return True


def _give_shapes(module: Any, path: str, shapes: dict[str, list[int]], limit: int) -> None:
    """Gives a module's own parameters their shapes; the bias and the sizes of a Linear and its like follow."""
    if isinstance(module, nn.LayerNorm):
        _refuse("parameters", "a LayerNorm is never cut", path)
    if isinstance(module, nn.Embedding):
        count = [module.num_embeddings]
        if path.rpartition(".")[2] not in NAMES["copies"] or shapes.get("weight", count)[:1] != count:
            _refuse("parameters", f"an Embedding keeps its {module.num_embeddings} rows, and words their size", path)
    if "weight" in shapes:
        _give_shape(module, path, "weight", shapes["weight"], limit)
    for kind, names, outputs in LAYERS:
        if isinstance(module, kind):
            for name, size in zip(names, module.weight.shape, strict=True):
                setattr(module, name, size)
            if module._parameters.get("bias") is not None or "bias" in shapes:
                bias = [module.weight.shape[outputs]]
                if shapes.setdefault("bias", bias) != bias:
                    _refuse("parameters", f"must be {bias}, as the weight says, got {shapes['bias']}", f"{path}.bias")
    for name, shape in shapes.items():
        _give_shape(module, path, name, shape, limit)


def _give_shape(module: Any, path: str, name: str, shape: list[int], limit: int) -> None:
    """Gives one parameter its shape, on its device and in its precision."""
    held = module._buffers if name in BUFFERS and name in module._buffers else module._parameters
    if name not in held:
        _refuse("parameters", f"{type(module).__name__} has no such parameter", f"{path}.{name}")
    old = held[name]
    if old is None and not (name == "bias" and isinstance(module, PROJECTIONS)):
        _refuse("parameters", "only the bias of a Linear or Conv1D can be new", f"{path}.{name}")
    was = shape if old is None else list(old.shape)
    if len(shape) != len(was) or any(new > max(size, limit) for new, size in zip(shape, was, strict=True)):
        _refuse("parameters", f"must be no larger than {was}, got {_short(shape)}", f"{path}.{name}")
    if name == "weight" and len(was) == 1 and shape != was:
        _refuse("parameters", f"the weights of a norm are never cut, got {_short(shape)}", f"{path}.{name}")
    like = module.weight if old is None else old
    if old is None or any(new > size for new, size in zip(shape, was, strict=True)):
        setattr(module, name, nn.Parameter(like.new_zeros(shape), like.requires_grad))
    elif shape != was:
        first = old.detach()[tuple(slice(size) for size in shape)].clone()
        setattr(module, name, first if held is module._buffers else nn.Parameter(first, like.requires_grad))


def _give_arguments(module: Any, path: str, kept: dict[str, list[int] | None], heads: int | None) -> None:
    """Lets a module's forward see the kept entries of its arguments only."""
    names = list(inspect.signature(module.forward).parameters)
    for name, indices in kept.items():
        if name not in names:
            _refuse("arguments", f"the forward of {type(module).__name__} has no {name}", path)
        if heads is not None and max(indices or [0]) >= heads:
            _refuse("arguments", f"{name} has {heads} entries, got {_short(max(indices or []))}", path)
    if not hasattr(module, "own_arguments"):
        module.register_forward_pre_hook(_with_own_arguments, with_kwargs=True)
    module.own_arguments = {name: (names.index(name), indices) for name, indices in kept.items()}


def _with_own_arguments(module: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
    """Forward pre-hook that selects arguments, given by name or by place."""
    given: Any = list(arguments)
    for name, (place, kept) in module.own_arguments.items():
        holder, key = (named, name) if name in named else (given, place)
        if (name in named or place < len(given)) and holder[key] is not None:
            holder[key] = None if kept is None else holder[key][:, kept]
    return tuple(given), named


def _empty(module: Any, path: str, outputs: int) -> None:
    """Lets a module that has no unit left give the bias of its projection without running what is left of it."""
    if isinstance(module, Empty):
        return
    matrices = [(name, each) for name, each in module.named_modules() if isinstance(each, PROJECTIONS)]
    if not matrices or any(each.weight.numel() for _, each in matrices):
        _refuse("empty", f"a {type(module).__name__} with weights left, or without any to begin with, is not", path)
    projections = [name for name, each in matrices if _width(each)]
    if len(projections) > 1:
        _refuse("empty", f"several projections are in it, {_short(projections)}", path)
    if projections and projections[0]:  # whoever brings weights in for a module brings them in for this one
        _empty(module.get_submodule(projections[0]), f"{path}.{projections[0]}", 1)
    module.projection, module.outputs = (projections or [""])[0], outputs
    module.__class__ = _empty_class(module.__class__)


@functools.cache
def _empty_class(kind: Any) -> type:
    return type(f"Empty{kind.__name__}", (Empty, kind), {"__module__": __name__})


def _width(module: Any) -> int:
    """Counts the outputs of a Linear or a Conv1D."""
    return int(module.weight.shape[1 if isinstance(module, Conv1D) else 0])


class Empty:
    """Is mixed into the class of a module without a unit."""

    projection: str  # path in the module; empty where it is the module itself, or comes after it
    outputs: int

    def forward(self: Any, *arguments: Any, **named: Any) -> Any:
        """Gives the bias of the projection at all positions of what comes in, and None for all other outputs."""
        states = arguments[0] if arguments else named["hidden_states"]
        if self.projection:
            given = self.get_submodule(self.projection)(states)
        else:
            given = states.new_zeros(*states.shape[:-1], _width(self) if isinstance(self, PROJECTIONS) else 0)
            given = given if getattr(self, "bias", None) is None else given + self.bias.to(given.dtype)
        return given if self.outputs == 1 else (given, *[None] * (self.outputs - 1))


class _Settings:
    """A config of which one module sees some fields with values of its own, and all else as it is at the time."""

    def __init__(self, shared: Any, own: dict[str, int]) -> None:
        self._shared, self._own = shared, dict(own)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in ("_shared", "_own"):  # what copy and pickle ask before these are there
            raise AttributeError(name)
        return self._own[name] if name in self._own else getattr(self._shared, name)


def _from_format_1(plan: dict[str, Any]) -> dict[str, Any]:
    """Translates {modules: {path: [outputs, inputs]}, biases: [path], attributes}; other biases follow the weights."""
    modules, biases = _mapping(plan.get("modules", {}), "modules"), plan.get("biases", [])
    for path, shape in modules.items():
        if not _are_ints(shape, 1) or len(shape) != 2:
            _refuse("modules", f"must be [outputs, inputs], got {_short(shape)}", path)
    if not isinstance(biases, list) or not all(isinstance(path, str) and path in modules for path in biases):
        _refuse("biases", f"must be paths that modules has, got {_short(biases)}")
    parameters = {f"{path}.weight": shape for path, shape in modules.items()}
    parameters.update({f"{path}.bias": modules[path][:1] for path in biases})
    return {"parameters": parameters, "attributes": plan.get("attributes", {})}


def _entries(plan: dict[str, Any], section: str) -> Iterator[tuple[str, str, Any]]:
    """Goes through {path: {name: value}}, with names of the closed list only."""
    for path, values in _mapping(plan.get(section, {}), section).items():
        for name, value in _mapping(values, section, path).items():
            if name not in NAMES[section]:
                _refuse(section, f"{_short(name)} is none of {', '.join(sorted(NAMES[section]))}", path)
            yield path, name, value


def _check_fields(layers: Any) -> None:
    """Refuses a `per_layer_config`, which transformers reads, that says anything but sizes."""
    for layer, fields in layers.items() if isinstance(layers, dict) else [("", layers)]:
        for name, value in fields.items() if isinstance(fields, dict) else [("", None)]:
            if name in NO_SIZES or not _are_ints([value], 0):
                why = f"must be mappings from layers to sizes >= 0, got {_short(name)}: {_short(value)}"
                raise ValueError(f"per_layer_config[{_short(layer)}]: {why}")


def _check_change(section: str, path: str, holder: Any, name: str, value: int | bool, cuts: Cuts) -> None:
    """Refuses to write over anything but a value of that kind, and a size that is not cut as a parameter is."""
    current = getattr(holder, name, None)
    if current is None or (name in FLAGS and getattr(holder, name.removeprefix("has_"), None) is None):
        _refuse(section, f"the module has nothing that {name} could tell of", path)
    if type(current) is not type(value) or (name not in FLAGS and current < value):
        _refuse(section, f"{name} must be no larger than {_short(current)}, got {value}", path)
    if name not in FLAGS and value != current and not any(new * current == old * value for new, old in cuts):
        _refuse(section, f"{name} goes from {current} to {value}, and no planned parameter in that module does", path)


def _cuts(before: dict[str, Any], planned: dict[str, list[int]], path: str, name: str) -> Cuts:
    """Lists the sizes of the planned parameters in a module, after and before."""
    inside = _place(path, name, {owner.rpartition(".")[0] for owner in planned})
    paths = [each for each in planned if each.startswith(f"{inside}.") and each in before]
    return {pair for each in paths for pair in zip(planned[each], before[each], strict=True)}


def _place(path: str, name: str, modules: Any) -> str:
    """Says in which module the parameters are that bear a size out; those of experts may lie beside."""
    return path.rpartition(".")[0] if name in EXPERTS and path not in modules else path


def _module(base_model: nn.Module, section: str, path: str) -> Any:
    place: nn.Module | None = base_model
    for name in path.split(".") if path else ():
        place = place._modules.get(name) if place is not None else None
    if place is None:
        name = f"{type(base_model).__name__} of transformers {transformers.__version__}"
        _refuse(section, f"{name} has no such module", path)
    return place


def _short(value: Any, length: int = 60) -> str:
    try:
        return f"{value!r:.{length}}"
    except (ValueError, RecursionError):  # an integer of thousands of digits, or thousands of lists in lists
        return f"a {type(value).__name__}"


def _mapping(value: Any, section: str, path: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(key, str) and len(key) <= 200 for key in value):
        _refuse(section, f"must be a mapping from names of up to 200 letters, got {_short(value)}", path)
    return value


def _are_ints(values: Any, least: int) -> bool:
    """Says whether something is a list of integers from the least on, which a bool is not, and at least one."""
    return isinstance(values, list) and bool(values) and all(type(each) is int and each >= least for each in values)


def _refuse(section: str, why: str, path: str = "") -> NoReturn:
    key = f"mabprune.{section}" if section else "mabprune"
    raise ValueError(f"{key}[{_short(path, 200)}]: {why}" if path else f"{key}: {why}")


def stock_config_class(config: type[PretrainedConfig]) -> type[PretrainedConfig]:
    """Gives the stock config class behind a per-layer one; a stock one is returned as it is."""
    classes = config.__mro__
    return classes[classes.index(PerLayerConfig) + 1] if issubclass(config, PerLayerConfig) else config


def config_class(stock: type[PretrainedConfig]) -> type[PretrainedConfig]:
    """Gives the per-layer config class of a stock one, e.g. `MabpruneBertConfig` for `BertConfig`."""
    if issubclass(stock, PerLayerConfig):
        return stock
    name = CLASS_PREFIX + stock.__name__
    if name not in _classes:
        body = {"__module__": __name__, "model_type": TYPE_PREFIX + stock.model_type, "_auto_class": "AutoConfig"}
        _classes[name] = type(name, (PerLayerConfig, stock), body)
    return _classes[name]


def model_class(stock: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """Gives the per-layer model class of a stock one, e.g. `MabpruneBertModel` for `BertModel`."""
    if issubclass(stock, PerLayerModel):
        return stock
    name = CLASS_PREFIX + stock.__name__
    if name not in _classes:
        config: Any = stock.config_class
        autos = [auto for auto, models in auto_classes(config).items() if stock in models]
        body = {
            "__module__": __name__,
            "config_class": config_class(config),
            "_auto_class": autos[0] if autos else None,
        }
        _classes[name] = type(name, (PerLayerModel, stock), body)
    return _classes[name]


def auto_classes(stock: type[PretrainedConfig]) -> dict[str, tuple[type[PreTrainedModel], ...]]:
    """Maps each AutoModel class name to the stock model classes that it builds for a stock config class, the usual one
    first; where there are several, a config says which by its `architectures`."""
    found = {}
    for name, auto in vars(modeling_auto).items():
        mapping = getattr(auto, "_model_mapping", None)
        if name.startswith("AutoModel") and mapping is not None and stock in mapping:
            models = mapping[stock]
            models = tuple(models) if isinstance(models, (tuple, list)) else (models,)
            if models[0].config_class is stock:  # some auto classes borrow another family's config
                found[name] = models
    return found


def auto_map(stock: type[PretrainedConfig]) -> dict[str, str]:
    """Writes the `auto_map` of config.json: every auto class that knows the stock config, and where its class is."""
    here = __name__.rpartition(".")[2]
    names = {auto: models[0].__name__ for auto, models in auto_classes(stock).items()}
    return {"AutoConfig": f"{here}.{CLASS_PREFIX}{stock.__name__}"} | {
        auto: f"{here}.{CLASS_PREFIX}{name}" for auto, name in names.items()
    }


def _register_models(config: type[Any]) -> None:
    """Enters the model classes of a per-layer config class in the AutoModel classes, once, when it is first used."""
    if config in AutoModel._model_mapping._extra_content:
        return
    for auto, models in auto_classes(stock_config_class(config)).items():
        own = tuple(map(model_class, models))
        getattr(modeling_auto, auto).register(config, own if len(own) > 1 else own[0], exist_ok=True)


def register(model_types: list[str]) -> None:
    """Makes AutoConfig, and with it every AutoModel class, know the per-layer checkpoints of these stock types."""
    for model_type in model_types:
        stock = CONFIG_MAPPING[model_type]
        AutoConfig.register(TYPE_PREFIX + model_type, config_class(stock), exist_ok=True)


def __getattr__(name: str) -> type:
    """Gives classes by name, for auto_map: `MabpruneBertConfig`, `MabpruneBertModel`, ..."""
    stock = getattr(transformers, name.removeprefix(CLASS_PREFIX), None) if name.startswith(CLASS_PREFIX) else None
    if not isinstance(stock, type) or not issubclass(stock, (PretrainedConfig, PreTrainedModel)):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if issubclass(stock, PretrainedConfig):
        AutoConfig.register(TYPE_PREFIX + stock.model_type, config_class(stock), exist_ok=True)
        return config_class(stock)
    return model_class(stock)
