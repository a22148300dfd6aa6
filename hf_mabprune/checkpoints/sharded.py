"""Writes a checkpoint from pieces of a state dict as they come, so that no more than a shard of it is in memory."""

import copy
import json
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

MAX_SHARD_BYTES = 5 * 10**9  # what the Hub takes for granted


def save_sharded(
    pieces: Iterable[dict[str, Tensor]],
    config: PretrainedConfig,
    model_class: type[PreTrainedModel],
    folder: Path,
    dtype: torch.dtype,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    generation_config: GenerationConfig | None = None,
) -> int:
    """Writes weights, config and generation config as `save_pretrained` does, from a state dict that comes in pieces.

    config.json is written last: a folder without it is no checkpoint.

    Args:
        pieces: Parts of the state dict, tied weights once. Each is emptied while it is written, so that a layer can
            be freed before the next is made.
        config: Config of the model; a copy of it is written.
        model_class: Class of the model, stock or per-layer.
        folder: Folder to write to; made where it is missing.
        dtype: Precision of the floating-point weights on disk.
        max_shard_bytes: Size at which a file of weights ends and the next begins; only a single larger tensor may
            pass it. What fits in one is one `model.safetensors`.
        generation_config: Generation settings to save for a model that generates; by default those that follow from
            its config.

    Returns:
        Bytes of the files of weights.

    Raises:
        FileExistsError: If the folder holds weights already.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if earlier := sorted(folder.glob("*.safetensors*")):
        raise FileExistsError(f"{folder} holds {earlier[0].name} already: give an empty folder")
    shards = _Shards(folder, dtype, max_shard_bytes)
    try:
        for piece in pieces:
            while piece:
                name = next(iter(piece))
                shards.add(name, piece.pop(name))
        weights = shards.finish()
    except BaseException:
        shards.discard()
        raise
    if model_class.can_generate():
        (generation_config or GenerationConfig.from_model_config(config)).save_pretrained(folder)
    config = copy.deepcopy(config)
    config.dtype = str(dtype).removeprefix("torch.")
    config.architectures = [model_class.__name__]
    config.save_pretrained(folder)  # a per-layer config brings modeling_pruned.py along
    return weights


class _Shards:
    """Files of weights that are being written: under temporary names, until their number is known.

    Attributes:
        pending: Tensors of the file to come.
        pending_bytes: Size of those.
        contents: Names of the tensors in each file written so far.
    """

    def __init__(self, folder: Path, dtype: torch.dtype, max_bytes: int) -> None:
        self.folder, self.dtype, self.max_bytes = folder, dtype, max_bytes
        self.pending: dict[str, Tensor] = {}
        self.pending_bytes = 0
        self.contents: list[list[str]] = []
        self.total_bytes = self.total_parameters = 0

    def add(self, name: str, tensor: Tensor) -> None:
        """Takes one tensor over, and writes a file where it would not fit any more."""
        stored = tensor.detach().to("cpu", self.dtype if tensor.is_floating_point() else tensor.dtype).contiguous()
        if self.pending and self.pending_bytes + stored.nbytes > self.max_bytes:
            self._flush()
        self.pending[name] = stored
        self.pending_bytes += stored.nbytes
        self.total_bytes += stored.nbytes
        self.total_parameters += stored.numel()

    def finish(self) -> int:
        """Writes the last file, names all of them as transformers does, and gives their bytes."""
        self._flush()
        count = len(self.contents)
        names = [SAFE_WEIGHTS_NAME]
        if count > 1:
            names = [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]
            files = {tensor: name for name, content in zip(names, self.contents, strict=True) for tensor in content}
            totals = {"total_parameters": self.total_parameters, "total_size": self.total_bytes}
            index = json.dumps({"metadata": totals, "weight_map": files}, indent=2, sort_keys=True) + "\n"
            (self.folder / SAFE_WEIGHTS_INDEX_NAME).write_text(index, encoding="utf-8")
        for number, name in enumerate(names):
            self._temporary(number).rename(self.folder / name)
        return sum((self.folder / name).stat().st_size for name in names)

    def discard(self) -> None:
        """Deletes what was written under temporary names."""
        for number in range(len(self.contents) + 1):
            self._temporary(number).unlink(missing_ok=True)

    def _flush(self) -> None:
        save_file(self.pending, self._temporary(len(self.contents)), metadata={"format": "pt"})
        self.contents.append(list(self.pending))
        self.pending, self.pending_bytes = {}, 0

    def _temporary(self, number: int) -> Path:
        return self.folder / f"model-{number:05d}.safetensors.part"
