"""Tiny checkpoints with packed weights, and what their weights are unpacked."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

BLOCK = 8  # rows and columns of an FP8 weight that share a scale
LARGEST_FP8 = 448.0
FP4 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
IN_BLOCK = 32  # numbers of an MXFP4 weight that share a scale
Tensors = dict[str, torch.Tensor]


def pack_fp8(folder: Path) -> Tensors:
    """Packs the projections of a saved model into FP8, in place; gives all its weights as they are unpacked."""
    packed, unpacked = {}, {}
    for name, weight in load_file(folder / "model.safetensors").items():
        unpacked[name] = packed[name] = weight
        if name.endswith("_proj.weight"):
            blocks = weight.unfold(0, BLOCK, BLOCK).unfold(1, BLOCK, BLOCK)
            scales = (blocks.abs().amax((2, 3)) / LARGEST_FP8).contiguous()
            spread = scales.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
            packed[name], packed[f"{name}_scale_inv"] = (weight / spread).to(torch.float8_e4m3fn), scales
            unpacked[name] = packed[name].float() * spread
    _write(folder, packed, {"quant_method": "fp8", "weight_block_size": [BLOCK, BLOCK]})
    return unpacked


def pack_mxfp4(folder: Path, generator: torch.Generator) -> Tensors:
    """Puts random MXFP4 weights in the place of a saved model's experts; gives these as they are unpacked."""
    packed, unpacked = {}, {}
    for name, weight in load_file(folder / "model.safetensors").items():
        if not name.endswith(("gate_up_proj", "down_proj")):
            packed[name] = weight
            continue
        experts, inputs, outputs = weight.shape
        blocks = experts, outputs, inputs // IN_BLOCK
        pairs = torch.randint(256, (*blocks, IN_BLOCK // 2), generator=generator, dtype=torch.uint8)
        powers = torch.randint(118, 124, blocks, generator=generator, dtype=torch.uint8)
        packed[f"{name}_blocks"], packed[f"{name}_scales"] = pairs, powers
        numbers = FP4[torch.stack([pairs & 15, pairs >> 4], -1).long()].flatten(-2)
        numbers = numbers * torch.exp2(powers.float() - 127).unsqueeze(-1)
        unpacked[name] = numbers.flatten(-2).transpose(1, 2)
    _write(folder, packed, {"quant_method": "mxfp4"})
    return unpacked


def say_quantised(folder: Path, **stated: Any) -> None:
    """Has the config of a saved model say that it is quantised."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": stated}))


def _write(folder: Path, tensors: Tensors, stated: dict[str, Any]) -> None:
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    say_quantised(folder, **stated)
