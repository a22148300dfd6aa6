"""Graphs in ONNX: written from a model, run in onnxruntime, compared; what all exports to ONNX share."""

import inspect
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES
from transformers.utils import ModelOutput

from hf_mabprune.architectures.base import PRUNED_PREFIX
from hf_mabprune.architectures.positions import max_positions
from hf_mabprune.checkpoints.load import Processor

FILE = "model.onnx"
USUAL_INPUTS = ("input_ids", "attention_mask")
SIZES = ((2, 7), (1, 5), (3, 16))  # examples and tokens: of the example that is traced, and of those that are compared
CHOICES = 2
MODULES = ("onnx", "onnxscript", "onnxruntime")  # that writing and running take
REMEDY = "pip install 'hf_mabprune[onnx]'"
Difference = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # of what is written from the model's own


def check_graph(model: PreTrainedModel, export: str) -> None:
    """Refuses decoders, and models that read anything but token ids.

    Args:
        export: Name of the export, for messages.
    """
    name, config = type(model).__name__, model.config
    if model.main_input_name != "input_ids":
        raise ValueError(f"export {export} is for models that read token ids, got {name}, of {model.main_input_name}")
    encoder = config.model_type.removeprefix(PRUNED_PREFIX) in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    if not encoder or config.is_encoder_decoder or getattr(config, "is_decoder", False):
        raise ValueError(
            f"export {export} is for text encoders and their classifiers, got {name}: what decoders keep from token "
            "to token is not written yet"
        )


def write_graph(model: PreTrainedModel, processor: Processor, file: Path) -> None:
    """Writes a graph for any number of examples of any length, in float32.

    Inputs are those that the tokenizer gives, outputs the tensors that the model gives, by their names.
    """
    given = getattr(processor, "model_input_names", USUAL_INPUTS)
    taken = inspect.signature(model.forward).parameters
    names = [name for name in given if name in taken]
    example = _example(model, names, *SIZES[0])
    axes = {0: "examples", example[names[0]].ndim - 1: "tokens"}
    if len(axes) < example[names[0]].ndim:
        axes[1] = "choices"
    graph = _Graph(model, names)
    with quietly():
        program = torch.onnx.export(
            graph,
            tuple(example.values()),
            input_names=names,
            output_names=list(graph.outputs(example)),
            dynamic_shapes=(tuple(axes for _ in names),),
            dynamo=True,
            verbose=False,
        )
        program.save(str(file))  # type: ignore[union-attr]


class Runtime:
    """A graph in onnxruntime, called as the model is: inputs by name, of which it takes those that it has.

    Args:
        file: The graph.
    """

    def __init__(self, file: Path) -> None:
        from onnxruntime import InferenceSession, SessionOptions

        options = SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        self._session = InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        self.inputs = [each.name for each in self._session.get_inputs()]
        self._outputs = [each.name for each in self._session.get_outputs()]

    def __call__(self, **inputs: torch.Tensor) -> ModelOutput:
        given = {name: inputs[name].numpy() for name in self.inputs}
        values = map(torch.from_numpy, self._session.run(None, given))
        return ModelOutput(zip(self._outputs, values, strict=True))


@torch.inference_mode()
def graph_difference(model: PreTrainedModel, file: Path, difference: Difference) -> float:
    """Compares a graph with a model on batches of several sizes, with padding; gives the largest difference of two
    outputs of the same name."""
    runtime, differences = Runtime(file), []
    for examples, tokens in SIZES[1:]:
        example = _example(model, runtime.inputs, examples, tokens)
        found, own = runtime(**example), _Graph(model, runtime.inputs).outputs(example)
        differences += [difference(found[name], own[name]) for name in own]
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
def quietly() -> Iterator[None]:
    """Keeps what exporter and quantiser say of themselves from the user."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
