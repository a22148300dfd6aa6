"""SHA-256 of data and weights in memory, by which a report says what a run was made from."""

import hashlib
from collections.abc import Iterable, Mapping

import torch
from torch import nn

HALVES = (torch.bfloat16, torch.float16)


def sha256_of_batches(batches: Iterable[Mapping[str, torch.Tensor]]) -> str:
    """Hashes every tensor of some batches, in their order, those of a batch by name."""
    digest = hashlib.sha256()
    for number, batch in enumerate(batches):
        for name, tensor in sorted(batch.items()):
            _update(digest, f"{number} {name}", tensor)
    return digest.hexdigest()


def sha256_of_weights(model: nn.Module) -> str:
    """Hashes every tensor of a model's state dict, by name; half precision as the float32 of the same value."""
    return sha256_of_tensors(model.state_dict())


def sha256_of_tensors(tensors: Mapping[str, torch.Tensor]) -> str:
    """Hashes tensors with their names, as `sha256_of_weights` does."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        _update(digest, name, tensor.float() if tensor.dtype in HALVES else tensor)
    return digest.hexdigest()


def sha256_by_name(model: nn.Module) -> dict[str, str]:
    """Hashes each tensor of a model's state dict: name -> SHA-256."""
    digests = {}
    for name, tensor in model.state_dict().items():
        digest = hashlib.sha256()
        _update(digest, "", tensor)
        digests[name] = digest.hexdigest()
    return digests


def _update(digest: "hashlib._Hash", name: str, tensor: torch.Tensor) -> None:
    """Adds a tensor's name, type, shape and bytes."""
    digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
    digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
