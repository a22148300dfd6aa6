"""What memory a training takes, and how many examples are differentiated at a time so that it stays small.

Most of it is what layers keep for the backward pass: hundreds of times as many bytes a token as the token's hidden
state has numbers. Symbols: B examples in a step; T tokens of the longest.
"""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from hf_mabprune.architectures import architecture_of, projection_of
from hf_mabprune.config import RecoveryConfig
from hf_mabprune.recovery.trained import in_half, takes_steps
from hf_mabprune.tasks.base import Task
from hf_mabprune.tasks.batch import Batch, typical_example
from hf_mabprune.tasks.vocabulary import KEPT, large_head, without_head

NUMBERS = {"cpu": 2**22, "cuda": 2**25}  # of hidden states after all layers, that are differentiated at a time
SHORT = 64  # tokens of the example that shows what is kept
OF_A_STEP = 4 * (1 + 1 + 2)  # bytes of a weight that is trained: float32, its gradient, and the two sums of AdamW


def examples_together(dense: PreTrainedModel, size: int, longest: int) -> int:
    """Says how many examples of a step are differentiated at a time, a divisor of their number.

    Args:
        dense: The dense model.
        size: Examples of a step on one process.
        longest: Tokens of the longest example, 0 where there are no tokens.
    """
    architecture = architecture_of(dense)
    hidden = max(len(projection_of(dense, site).parts[0]) for site in architecture.sites(dense))
    numbers = longest * hidden * len(architecture.layers(dense))  # of an example
    most = NUMBERS.get(dense.device.type, NUMBERS["cpu"])
    return max(count for count in range(1, size + 1) if size % count == 0 and (count - 1) * numbers < most)


def memory(
    dense: PreTrainedModel, task: Task, batches: Sequence[Batch], settings: RecoveryConfig, size: int, longest: int
) -> int:
    """Counts the bytes that a training takes, beside the dense and the pruned model; an upper limit, as of the dense
    model, of which one short example runs forward.

    Args:
        dense, size, longest: As those of `examples_together`.
        task: Its task.
        batches: Calibration batches.
        settings: Recovery settings.
    """
    copies = dense.dtype.itemsize * dense.num_parameters()  # of what was there before, or of what is merged
    head = KEPT if task.predicts_tokens and large_head(dense) is not None else 0
    example = typical_example(batches, SHORT if longest else None)
    tokens = longest / SHORT if longest else 1.0
    kept = examples_together(dense, size, longest) * tokens * _kept(dense, task, example, settings)
    return OF_A_STEP * _stepping(dense, settings) + copies + head + round(kept)


def saved_bytes(dense: PreTrainedModel, settings: RecoveryConfig, trainings: int) -> int:
    """Counts the bytes that the trainings of a run take on the disk until it is over; updates of low rank apart.

    Args:
        dense: The dense model.
        settings: Recovery settings.
        trainings: Number of trainings, each of which leaves its weights; one at a time has the sums of AdamW too.
    """
    return torch.float32.itemsize * _stepping(dense, settings) * (trainings + 2)


def _stepping(dense: PreTrainedModel, settings: RecoveryConfig) -> int:
    """Counts the parameters of the model that take steps."""
    return sum(parameter.numel() for parameter in dense.parameters() if takes_steps(parameter, settings))


def _kept(dense: PreTrainedModel, task: Task, example: Batch, settings: RecoveryConfig) -> int:
    """Bytes that a forward pass keeps for the backward pass, the weights of the model apart."""
    flags = [(parameter, parameter.requires_grad) for parameter in dense.parameters()]
    weights = {parameter.untyped_storage().data_ptr() for parameter in dense.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage  # which is held, so that no other one takes its place
        return tensor

    half = torch.autocast(dense.device.type, torch.bfloat16, enabled=in_half(dense))
    try:
        for parameter, _ in flags:
            parameter.requires_grad_(takes_steps(parameter, settings))
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), half:
            inputs = {**example.to(dense.device), **task.forward_options}
            if not (task.predicts_tokens and without_head(dense, inputs)):
                dense(**inputs)
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
    return sum(storage.nbytes() for place, storage in kept.items() if place not in weights)
