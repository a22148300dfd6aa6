"""Dequantises checkpoints of packed weights at load, where the user asks for that, into ordinary models.

transformers has two ways: most methods unpack while they load (`dequantize` of their config), bitsandbytes and HIGGS
afterwards (`model.dequantize()`). What a method without either has packed cannot be had back.
"""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING
from transformers.quantizers.base import HfQuantizer

from hf_mabprune.architectures.base import QUANTISED
from hf_mabprune.errors import OutsideError, one_line, outside

CONFIGS: Mapping[str, Any] = AUTO_QUANTIZATION_CONFIG_MAPPING
QUANTISERS: Mapping[str, Any] = AUTO_QUANTIZER_MAPPING
GGUF = "gguf"
LEFTOVERS = (
    "hf_quantizer",
    "is_quantized",
    "quantization_method",
    "is_loaded_in_4bit",
    "is_loaded_in_8bit",
    "_weight_conversions",  # which would pack the weights again when they are saved
)


def dequantising(
    config: PreTrainedConfig, name: str, wanted: bool, gguf_file: str | None = None, spread: bool = False
) -> dict[str, Any]:
    """Gives the options of `load_weights` that dequantise a checkpoint; none for one that is not quantised.

    Args:
        config: Config of the checkpoint.
        name: Folder or Hub name, for messages.
        wanted: Whether the user asks for it.
        gguf_file: GGUF file that the weights come from, if they come from one.
        spread: Whether weights are to lie elsewhere than the model computes.

    Raises:
        ValueError: If the checkpoint is quantised and the user does not ask, or asks and it is not, or it is
            quantised by a method that cannot be undone, or not with weights that lie elsewhere.
    """
    if gguf_file and GGUF not in CONFIGS:  # early versions know no other way to read one
        return {"dequantize": True}
    stated = {"quant_method": GGUF} if gguf_file else _stated(config)
    if stated is None:
        if wanted:
            raise ValueError(f"{name} is not quantised: leave model.dequantize out")
        return {}
    with outside(f"quantization_config of {name} cannot be read"):
        method = _method(stated)
    if not (_unpacks_at_load(method) or _unpacks_afterwards(method)):
        known = ", ".join(each for each in QUANTISERS if _unpacks_at_load(each) or _unpacks_afterwards(each))
        raise ValueError(
            f"{name} is quantised by {method:.60}, which cannot be undone here ({known} can): prune the model that it "
            "was made from, then quantise"
        )
    if not wanted:
        raise ValueError(QUANTISED)
    if _unpacks_at_load(method):
        with outside(f"{name} cannot be dequantised"):
            unpacking = CONFIGS[method].from_dict({**stated, "dequantize": True})
        return {"dequantize": True, "quantization_config": unpacking}
    if spread:
        raise ValueError(f"{name} is quantised by {method}, which is undone in memory: leave model.device_map out")
    return {"dequantize": True}


def _stated(config: PreTrainedConfig) -> Any:
    """Gives what a config says of quantisation, where transformers looks for it; None where it says nothing."""
    for each in (config, config.get_text_config(decoder=True)):
        if (stated := getattr(each, "quantization_config", None)) is not None:
            return stated
    return None


def _method(stated: Any) -> str:
    """Names the method of a `quantization_config`, as transformers registers it."""
    if not isinstance(stated, dict):
        raise ValueError(f"it must hold a mapping, got {type(stated).__name__}")
    for bits in ("4bit", "8bit"):
        if stated.get(f"load_in_{bits}"):
            return f"bitsandbytes_{bits}"
    return one_line(str(stated.get("quant_method")))


def _unpacks_at_load(method: str) -> bool:
    """Tells whether weights are dequantised while they are read, where that is asked for."""
    return method in CONFIGS and "dequantize" in inspect.signature(CONFIGS[method]).parameters


def _unpacks_afterwards(method: str) -> bool:
    """Tells whether a model whose weights have been read can be dequantised."""
    return method in QUANTISERS and QUANTISERS[method]._dequantize is not HfQuantizer._dequantize


def dequantised(model: PreTrainedModel, dtype: torch.dtype, name: str) -> PreTrainedModel:
    """Makes a model that was read with `dequantising` an ordinary one, in place where that is possible.

    Args:
        model: Model, as `from_pretrained` gives it.
        dtype: Least precision of its weights.
        name: Folder or Hub name, for messages.

    Raises:
        OutsideError: If weights are packed still.
    """
    quantiser = getattr(model, "hf_quantizer", None)
    if quantiser is not None and type(quantiser)._dequantize is not HfQuantizer._dequantize:
        model = model.dequantize(dtype)
    forget_quantiser(model)
    for path, parameter in model.named_parameters():
        if not parameter.is_floating_point() or parameter.dtype.itemsize < 2:
            raise OutsideError(f"{name} cannot be dequantised: {path} is {parameter.dtype} still")
        if parameter.dtype.itemsize < dtype.itemsize and not parameter.is_meta:
            parameter.data = parameter.data.to(dtype)
    return model


def forget_quantiser(model: nn.Module) -> None:
    """Takes from a model whose weights are not packed what says, or would do when it is saved, otherwise."""
    for part in model.modules():
        if isinstance(part, PreTrainedModel):
            for leftover in LEFTOVERS:
                vars(part).pop(leftover, None)
            for config in (part.config, part.config.get_text_config(decoder=True)):
                vars(config).pop("quantization_config", None)
                vars(config).pop("_is_quantized", None)


def packs_when_saved(model: PreTrainedModel) -> bool:
    """Tells whether `save_pretrained` would pack weights again that were packed where the model was read from.

    transformers unpacks FP8 unasked where no device can compute with it, and remembers how to go back.
    """
    steps = (getattr(conversion, "operations", ()) for conversion in getattr(model, "_weight_conversions", None) or ())
    return any(getattr(step, "hf_quantizer", None) is not None for each in steps for step in each)
