"""Writes checkpoints: weights, config, tokenizer or processor and, for per-layer sizes, their model
file."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import torch
from transformers import PreTrainedModel

from hf_mabprune.checkpoints import modeling_pruned
from hf_mabprune.checkpoints.offload import Keep, all_away
from hf_mabprune.checkpoints.processors import Processor


def round_weights(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Rounds the parameters to the precision they are saved in, in place, so that what is measured is what is saved.

    Buffers keep their precision: rotary frequencies must not be rounded.
    """
    keep = all_away(model)
    for parameter in model.parameters():
        if parameter.dtype != dtype:
            parameter.data = keep(parameter.data.to(dtype).to(parameter.dtype))


def save_checkpoint(
    model: PreTrainedModel,
    folder: Path,
    processor: Processor | None,
    dtype: torch.dtype,
    beside: Mapping[str, str] = MappingProxyType({}),
) -> int:
    """Writes weights (safetensors), config, generation config, processor and, for per-layer sizes, their model file.

    Args:
        model: Model to save, stock or per-layer; it is as before afterwards.
        folder: Folder to write to.
        processor: Tokenizer or processor to save beside it, if any.
        dtype: Precision of the weights on disk.
        beside: Name below the folder -> text of further files.

    Returns:
        Bytes of the files of weights.
    """
    keep, kept_dtype = all_away(model), {name: parameter.dtype for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.data = _cast(parameter.data, dtype, keep)
    try:
        # The stock key conversion would not know the class of a per-layer model.
        model.save_pretrained(folder, save_original_format=not isinstance(model, modeling_pruned.PerLayerModel))
    finally:
        for name, parameter in model.named_parameters():
            parameter.data = _cast(parameter.data, kept_dtype[name], keep)
    if processor is not None:
        processor.save_pretrained(folder)
    for name, text in beside.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def _cast(tensor: torch.Tensor, dtype: torch.dtype, keep: Keep) -> torch.Tensor:
    """Gives a tensor in another precision, kept where the model has its weights; itself where it is of that one."""
    return tensor if tensor.dtype == dtype else keep(tensor.to(dtype))
