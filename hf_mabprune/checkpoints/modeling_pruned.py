"""Transformers models whose layers have sizes of their own, as written by hf_mabprune.

This one file travels inside every per-layer checkpoint. It needs torch and transformers only, knows no model family,
and holds no weights: a checkpoint's config.json says which Linear modules have which sizes (`mabprune`), and this
file builds the stock model and then swaps those modules for ones of the right size before the weights are loaded.

`MabpruneBertForSequenceClassification` is transformers' `BertForSequenceClassification` with such sizes; the classes
are made on demand, by name, for any model in transformers.
"""

from typing import Any

import transformers
from torch import nn
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto

FORMAT = 1
CLASS_PREFIX = "Mabprune"
TYPE_PREFIX = "mabprune_"
_classes: dict[str, type] = {}


class PerLayerConfig:
    """Is mixed into a stock config class: global values stay readable although layers differ."""

    allow_global_per_layer_attribute_access = True

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        _register_models(cls)
        return super().__new__(cls)

    def __init__(self, **kwargs: Any) -> None:
        plan = kwargs.get("mabprune") or {}
        if plan.get("format", FORMAT) != FORMAT:
            raise ValueError(
                f"this checkpoint has hf_mabprune format {plan['format']}, this file reads format {FORMAT}: "
                "install the hf_mabprune that wrote it, or load it with trust_remote_code=True"
            )
        super().__init__(**kwargs)

    def __getattribute__(self, key: str) -> Any:
        # The stock constructors read the original sizes here; the per-layer ones follow from the plan.
        names = object.__getattribute__(self, "attribute_map")
        return object.__getattribute__(self, names.get(key, key))


class PerLayerModel:
    """Is mixed into a stock model class: after the stock constructor, the planned modules get their sizes."""

    def __init__(self, config: PretrainedConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)  # type: ignore[call-arg]
        resize(self.base_model, getattr(config, "mabprune", None) or {})  # type: ignore[attr-defined]


def resize(base_model: nn.Module, plan: dict[str, Any]) -> None:
    """Gives the modules of a freshly built base model the sizes of a plan, in place.

    Args:
        base_model: Model as its stock constructor leaves it.
        plan: `modules`: path -> [out_features, in_features]; `biases`: paths of those that have a bias although the
            stock constructor gives them none; `attributes`: path -> {attribute: value}.
    """
    biases = plan.get("biases", ())
    for path, (out_features, in_features) in plan.get("modules", {}).items():
        old = base_model.get_submodule(path)
        bias = old.bias is not None or path in biases
        if (old.out_features, old.in_features, old.bias is not None) != (out_features, in_features, bias):
            parent, _, name = path.rpartition(".")
            new = nn.Linear(in_features, out_features, bias, device=old.weight.device, dtype=old.weight.dtype)
            setattr(base_model.get_submodule(parent), name, new)
    for path, attributes in plan.get("attributes", {}).items():
        module = base_model.get_submodule(path)
        for name, value in attributes.items():
            setattr(module, name, value)


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
        autos = [auto for auto, model in auto_classes(config).items() if model is stock]
        body = {
            "__module__": __name__,
            "config_class": config_class(config),
            "_auto_class": autos[0] if autos else None,
        }
        _classes[name] = type(name, (PerLayerModel, stock), body)
    return _classes[name]


def auto_classes(stock: type[PretrainedConfig]) -> dict[str, type[PreTrainedModel]]:
    """Maps each AutoModel class name to the stock model class that it builds for a stock config class."""
    found = {}
    for name, auto in vars(modeling_auto).items():
        mapping = getattr(auto, "_model_mapping", None)
        if name.startswith("AutoModel") and mapping is not None and stock in mapping:
            models = mapping[stock]
            model = models[0] if isinstance(models, (tuple, list)) else models
            if model.config_class is stock:  # some auto classes borrow another family's config
                found[name] = model
    return found


def auto_map(stock: type[PretrainedConfig]) -> dict[str, str]:
    """Writes the `auto_map` of config.json: every auto class that knows the stock config, and where its class is."""
    here = __name__.rpartition(".")[2]
    names = {auto: model.__name__ for auto, model in auto_classes(stock).items()}
    return {"AutoConfig": f"{here}.{CLASS_PREFIX}{stock.__name__}"} | {
        auto: f"{here}.{CLASS_PREFIX}{name}" for auto, name in names.items()
    }


def _register_models(config: type[Any]) -> None:
    """Enters the model classes of a per-layer config class in the AutoModel classes, once, when it is first used."""
    if config in AutoModel._model_mapping._extra_content:
        return
    for auto, model in auto_classes(stock_config_class(config)).items():
        getattr(modeling_auto, auto).register(config, model_class(model), exist_ok=True)


def register(model_types: list[str]) -> None:
    """Makes AutoConfig, and with it every AutoModel class, know the per-layer checkpoints of these stock types."""
    for model_type in model_types:
        stock = type(AutoConfig.for_model(model_type))
        AutoConfig.register(TYPE_PREFIX + model_type, config_class(stock), exist_ok=True)


def __getattr__(name: str) -> type:
    """Gives classes by name, for auto_map: `MabpruneBertConfig`, `MabpruneBertModel`, ..."""
    stock = getattr(transformers, name.removeprefix(CLASS_PREFIX), None) if name.startswith(CLASS_PREFIX) else None
    if stock is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if issubclass(stock, PretrainedConfig):
        AutoConfig.register(TYPE_PREFIX + stock.model_type, config_class(stock), exist_ok=True)
        return config_class(stock)
    return model_class(stock)
