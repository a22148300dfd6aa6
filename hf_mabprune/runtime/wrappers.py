"""Takes a model out of what training has wrapped it in, where that is exact, and refuses what cannot be taken off.

A wrapped or patched model computes with what no checkpoint can hold: a search would run to its end, and the copy that
is saved, or its comparison with the model in memory, would fail.
"""

import copy
import inspect
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NoReturn

import torch
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from transformers import PreTrainedConfig, PreTrainedModel

from hf_mabprune.architectures import architecture_of
from hf_mabprune.errors import kind_of

REMEDY = "give the model as from_pretrained returns it, before anything was done to it"
FORWARDS = ("forward", "_original_forward")  # what accelerate leaves in a model that it has prepared
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
OWN_HOOKS = ("transformers", "hf_mabprune", "transformers_modules")  # packages whose hooks a loaded model has too


@contextmanager
def left_as_it_was(model: nn.Module) -> Iterator[None]:
    """Gives a model the device and the modes back, each module its own, that it had when the block began."""
    modes, device = [(module, module.training) for module in model.modules()], next(model.parameters()).device
    try:
        yield
    finally:
        model.to(device)
        for module, training in modes:
            module.training = training


def unwrap(model: nn.Module) -> PreTrainedModel:
    """Takes a model out of its wrappers. The object that is given stays as it is; weights are shared with it.

    Args:
        model: Model as the user has it: plain, or wrapped by torch.compile, DataParallel, DistributedDataParallel, or
            by a Trainer or an Accelerator for mixed precision.

    Returns:
        The model itself, which computes what a checkpoint of it would.

    Raises:
        ValueError: If it cannot be taken out, or is not what its config describes.
    """
    plain: Any = model
    while (inner := _inside(plain)) is not None:
        plain = inner
    if not isinstance(plain, PreTrainedModel):
        _refuse_type(plain)
    if not isinstance(plain.config, PreTrainedConfig):
        raise ValueError(f"model.config must be a config of transformers, got {kind_of(plain.config)}: {REMEDY}")
    if "forward" in vars(plain) and _is_prepared(plain):
        plain = _without_forward(plain)
    architecture_of(plain)
    for path, module in plain.named_modules():
        _check_module(path or "the model", module)
    for path, parameter in plain.named_parameters():
        _check_parameter(path, parameter)
    _check_precisions(plain)
    _check_config(plain)
    return plain


def _inside(model: Any) -> nn.Module | None:
    """Gives the model in a wrapper; None where there is no wrapper that can be taken off."""
    if isinstance(model, (DataParallel, DistributedDataParallel)):
        return model.module
    compiled = getattr(model, "_orig_mod", None)
    return compiled if isinstance(compiled, nn.Module) else None


def _refuse_type(model: Any) -> NoReturn:
    """Refuses what is no model of transformers, with a remedy where it is known."""
    name = kind_of(model)
    if hasattr(model, "peft_config"):
        raise ValueError("the model carries unmerged adapters. Merge them first (merge_and_unload)")
    if isinstance(getattr(model, "module", None), PreTrainedModel):
        raise ValueError(f"the model is inside a {name}, which spreads its weights: {REMEDY}")
    raise ValueError(f"model must be a PreTrainedModel of transformers, got {name}: {REMEDY}")


def _is_prepared(model: PreTrainedModel) -> bool:
    """Tells whether all that was done to a model's forward is accelerate's mixed precision around its own."""
    original = vars(model).get("_original_forward")
    return getattr(original, "__func__", None) is type(model).forward and "_hf_hook" not in vars(model)


def _without_forward(model: PreTrainedModel) -> PreTrainedModel:
    """Gives a model of the same modules and weights with the forward of its class."""
    plain: PreTrainedModel = model.__class__.__new__(model.__class__)
    vars(plain).update({name: value for name, value in vars(model).items() if name not in FORWARDS})
    return plain


def _check_module(path: str, module: nn.Module) -> None:
    """Refuses a module that was given another forward, hooks, or weights that are computed."""
    if "_hf_hook" in vars(module):
        raise ValueError(
            f"{path} is moved between devices by accelerate (device_map): load it whole, without that, or name it in "
            "a config, with model.device_map"
        )
    if "forward" in vars(module):
        raise ValueError(f"the forward of {path} was replaced, which no checkpoint can hold: {REMEDY}")
    if parametrize.is_parametrized(module):
        raise ValueError(f"{path} has parametrized weights: make them plain (parametrize.remove_parametrizations)")
    for kind in HOOKS:
        for hook in getattr(module, kind, None) or {}:
            function = getattr(module, kind)[hook]
            function = function.func if isinstance(function, partial) else function
            home = str(getattr(inspect.unwrap(function), "__module__", None) or type(function).__module__)
            if home.partition(".")[0] not in OWN_HOOKS or isinstance(function, BasePruningMethod):
                name = getattr(function, "__qualname__", type(function).__name__)
                raise ValueError(f"{path} has the hook {name}, which no checkpoint can hold: remove it first")


def _check_parameter(path: str, parameter: nn.Parameter) -> None:
    """Refuses a parameter that is elsewhere, spread or packed."""
    if hasattr(parameter, "device_mesh"):
        raise ValueError(f"{path} is spread over processes (FSDP or tensor parallel): {REMEDY}")
    if parameter.is_meta:
        raise ValueError(f"{path} is on the meta device, without numbers: load the model whole, without offloading")
    if not parameter.is_floating_point():
        raise ValueError(f"{path} holds {parameter.dtype}: packed weights cannot be cut. Prune first, then quantise")


def _check_precisions(model: PreTrainedModel) -> None:
    """Refuses a model of several precisions; but parts of one in half precision may be float32."""
    usual = Counter(parameter.dtype for parameter in model.parameters()).most_common(1)[0][0]
    for path, parameter in model.named_parameters():
        if parameter.dtype not in (usual, torch.float32):
            raise ValueError(
                f"{path} is {parameter.dtype} in a model of {usual}: give it one precision, model.float()"
            )


def _check_config(model: PreTrainedModel) -> None:
    """Refuses a model that differs from what its class makes of its config, which is what a checkpoint keeps."""
    kind = type(model)
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            built = kind(copy.deepcopy(model.config))
    except Exception:  # a class of the user's that is not made from a config alone
        return
    ours, theirs = (
        {path: [*parameter.shape] for path, parameter in each.named_parameters()} for each in (model, built)
    )
    for path in [*ours, *theirs]:
        if ours.get(path) != theirs.get(path):
            raise ValueError(
                f"the model is not what its config describes: {path} is {ours.get(path, 'missing')}, a "
                f"{kind.__name__} of that config has {theirs.get(path, 'none')}; change model.config along with it"
            )
    modules = dict(built.named_modules())
    for path, module in model.named_modules():
        if path not in modules or type(modules[path]) is not type(module):
            raise ValueError(f"{path} was replaced by a {type(module).__name__}, which no checkpoint holds: {REMEDY}")
