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
from torch.onnx.errors import OnnxExporterError
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)
from transformers.utils import ModelOutput

from hf_mabprune.architectures.base import PRUNED_PREFIX
from hf_mabprune.architectures.positions import max_positions
from hf_mabprune.checkpoints.processors import Processor
from hf_mabprune.exports.onnx_decoder import PAST, DecoderGraph, beside_ids, check_decoder, writable_experts

FILE = "model.onnx"
USUAL_INPUTS = ("input_ids", "attention_mask")
SIZES = ((2, 7), (1, 5), (3, 16))  # examples and tokens: of the example that is traced, and of those that are compared
CHOICES = 2
MODULES = ("onnx", "onnxscript", "onnxruntime")  # that writing and running take
REMEDY = "pip install 'hf_mabprune[onnx]'"
Difference = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # of what is written from the model's own


def check_graph(model: PreTrainedModel, export: str) -> None:
    """Refuses what is neither a text encoder with any head nor a decoder that continues a text, and decoders that a
    graph cannot hold.

    Args:
        export: Name of the export, for messages.
    """
    name, config = type(model).__name__, model.config
    if model.main_input_name != "input_ids":
        raise ValueError(f"export {export} is for models that read token ids, got {name}, of {model.main_input_name}")
    both = config.is_encoder_decoder or getattr(config, "is_decoder", False)
    if _continues(model) and not both:
        check_decoder(model, export)
    elif both or config.model_type.removeprefix(PRUNED_PREFIX) not in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        raise ValueError(
            f"export {export} is for text encoders with any head, and for decoders that continue a text, got {name}"
        )


def write_graph(model: PreTrainedModel, processor: Processor, file: Path) -> None:
    """Writes a graph for any number of examples of any length, in float32.

    Of encoders inputs are those that the tokenizer gives, outputs the tensors that the model gives, by their names; of
    decoders they are those of `DecoderGraph`.
    """
    if _continues(model):
        graph: EncoderGraph | DecoderGraph = DecoderGraph(model)
    else:
        given = getattr(processor, "model_input_names", USUAL_INPUTS)
        taken = inspect.signature(model.forward).parameters
        graph = EncoderGraph(model, [name for name in given if name in taken])
    try:
        with quietly(), writable_experts(model):
            program = torch.onnx.export(
                graph,
                tuple(graph.example().values()),
                input_names=graph.inputs,
                output_names=graph.names,
                dynamic_shapes=(graph.axes(),),
                dynamo=True,
                verbose=False,
            )
            program.save(str(file))  # type: ignore[union-attr]
    except OnnxExporterError as error:
        first: BaseException = error
        while first.__cause__ is not None:
            first = first.__cause__
        reason = next(iter(str(first).splitlines()), "")
        raise ValueError(f"torch's exporter to ONNX does not write {type(model).__name__}: {reason}") from error


def _continues(model: PreTrainedModel) -> bool:
    """Tells whether a model is a decoder that continues a text and reads nothing else."""
    config, name = model.config, model.config.model_type.removeprefix(PRUNED_PREFIX)
    alone = config.get_text_config() is config
    return bool(model.can_generate() and name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and alone)


class Runtime:
    """A graph in onnxruntime, called as the model is: inputs by name, of which it takes those that it has. A decoder's
    may be left out but for the token ids.

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
        self._states = {each.name: each.shape for each in self._session.get_inputs() if each.name.startswith(PAST)}
        self._outputs = [each.name for each in self._session.get_outputs()]

    def __call__(self, **inputs: torch.Tensor) -> ModelOutput:
        given = beside_ids(inputs, self._states) if self._states else inputs
        arrays = {name: given[name].contiguous().numpy() for name in self.inputs}
        values = map(torch.from_numpy, self._session.run(None, arrays))
        return ModelOutput(zip(self._outputs, values, strict=True))


@torch.inference_mode()
def graph_difference(model: PreTrainedModel, file: Path, difference: Difference) -> float:
    """Compares a graph with a model on batches of several sizes, with padding, of decoders with keys and values of
    tokens before them too; gives the largest difference of two outputs of the same name."""
    runtime = Runtime(file)
    graph = DecoderGraph(model) if _continues(model) else EncoderGraph(model, runtime.inputs)
    return float(torch.stack([difference(found, own) for found, own in graph.comparisons(runtime)]).max())


class EncoderGraph(nn.Module):
    """Gives every tensor that a model gives, and nothing else, for inputs in their order.

    Attributes:
        inputs: Names of what `forward` takes, in order.
        names: Names of what it gives.
    """

    def __init__(self, model: PreTrainedModel, inputs: list[str]) -> None:
        super().__init__()
        self.model, self.inputs = model, inputs
        self.eval()
        self.names = list(self._outputs(self.example()))

    def example(self) -> dict[str, torch.Tensor]:
        """Makes the inputs that are traced."""
        return _example(self.model, self.inputs, *SIZES[0])

    def axes(self) -> tuple[dict[int, str], ...]:
        """Says which places of the inputs vary."""
        dimensions = self.example()[self.inputs[0]].ndim
        axes = {0: "examples", 1: "choices", dimensions - 1: "tokens"}
        return tuple(axes for _ in self.inputs)

    def comparisons(self, run: Runtime) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Gives each output of the graph and that of the model."""
        for examples, tokens in SIZES[1:]:
            example = _example(self.model, self.inputs, examples, tokens)
            found = run(**example)
            yield from ((found[name], own) for name, own in self._outputs(example).items())

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(self._outputs(dict(zip(self.inputs, inputs, strict=True))).values())

    def _outputs(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: value for name, value in self.model(**inputs).items() if isinstance(value, torch.Tensor)}


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
