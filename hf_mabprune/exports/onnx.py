"""ONNX: text encoders and classifiers, for onnxruntime and what else reads the format."""

import inspect
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from hf_mabprune.architectures.base import PRUNED_PREFIX
from hf_mabprune.architectures.positions import max_positions
from hf_mabprune.checkpoints.load import Processor
from hf_mabprune.exports.base import EXPORTS, Export

FILE = "model.onnx"
USUAL_INPUTS = ("input_ids", "attention_mask")
SIZES = ((2, 7), (1, 5), (3, 16))  # examples and tokens: of the example that is traced, and of those that are compared
CHOICES = 2
LOGGER = "torch.onnx"


@EXPORTS.register("onnx")
class Onnx(Export):
    """A graph for any number of examples of any length, per-layer sizes included, in float32.

    For encoders and their classifiers. Inputs are those that the tokenizer gives, outputs the tensors that the model
    gives, by their names.
    """

    modules = ("onnx", "onnxscript", "onnxruntime")
    remedy = "pip install 'hf_mabprune[onnx]'"

    def check(self, model: PreTrainedModel) -> None:
        """Refuses decoders, and models that read anything but token ids."""
        name, config = type(model).__name__, model.config
        if model.main_input_name != "input_ids":
            raise ValueError(f"export onnx is for models that read token ids, got {name}, of {model.main_input_name}")
        encoder = config.model_type.removeprefix(PRUNED_PREFIX) in MODEL_FOR_MASKED_LM_MAPPING_NAMES
        if not encoder or config.is_encoder_decoder or getattr(config, "is_decoder", False):
            raise ValueError(
                f"export onnx is for text encoders and their classifiers, got {name}: what decoders keep from token "
                "to token is not written yet"
            )

    def write(self, model: PreTrainedModel, processor: Processor, folder: Path) -> None:
        """See `Export.write`."""
        given = getattr(processor, "model_input_names", USUAL_INPUTS)
        taken = inspect.signature(model.forward).parameters
        names = [name for name in given if name in taken]
        example = _example(model, names, *SIZES[0])
        axes = {0: "examples", example[names[0]].ndim - 1: "tokens"}
        if len(axes) < example[names[0]].ndim:
            axes[1] = "choices"
        graph = _Graph(model, names)
        with _quietly():
            program = torch.onnx.export(
                graph,
                tuple(example.values()),
                input_names=names,
                output_names=list(graph.outputs(example)),
                dynamic_shapes=(tuple(axes for _ in names),),
                dynamo=True,
                verbose=False,
            )
            program.save(str(folder / FILE))  # type: ignore[union-attr]

    @torch.inference_mode()
    def difference(self, model: PreTrainedModel, folder: Path) -> float:
        """See `Export.difference`: batches of several sizes, with padding, in onnxruntime."""
        from onnxruntime import InferenceSession

        session = InferenceSession(str(folder / FILE), providers=["CPUExecutionProvider"])
        names, differences = [each.name for each in session.get_inputs()], []
        for examples, tokens in SIZES[1:]:
            example = _example(model, names, examples, tokens)
            outputs = session.run(None, {name: tensor.numpy() for name, tensor in example.items()})
            own = _Graph(model, names).outputs(example).values()
            differences += [(torch.from_numpy(a) - b).abs().max() for a, b in zip(outputs, own, strict=True)]
        return float(torch.stack(differences).max())


class _Graph(nn.Module):
    """Gives every tensor that a model gives, and nothing else, for inputs in their order."""

    def __init__(self, model: PreTrainedModel, names: list[str]) -> None:
        super().__init__()
        self.model, self.names = model, names
        self.eval()

    def outputs(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Gives the outputs by their names."""
        return {name: value for name, value in self.model(**inputs).items() if isinstance(value, torch.Tensor)}

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(self.outputs(dict(zip(self.names, inputs, strict=True))).values())


def _example(model: PreTrainedModel, names: list[str], examples: int, tokens: int) -> dict[str, torch.Tensor]:
    """Makes inputs, [examples, tokens] each, with choices between where the head chooses; the first text is padded."""
    tokens = min(tokens, max_positions(model.config))
    several = type(model).__name__.endswith("ForMultipleChoice")
    shape = (examples, CHOICES, tokens) if several else (examples, tokens)
    ids = torch.arange(examples * tokens * (CHOICES if several else 1)).view(shape) * 7 % model.config.vocab_size
    mask = torch.ones(shape, dtype=torch.long)
    mask[0, ..., tokens - tokens // 3 :] = 0
    values: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
    return {name: values.get(name, torch.zeros(shape, dtype=torch.long)) for name in names}


@contextmanager
def _quietly() -> Iterator[None]:
    """Keeps what the exporter says of itself from the user."""
    logger = logging.getLogger(LOGGER)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
