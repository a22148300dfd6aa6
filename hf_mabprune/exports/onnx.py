"""ONNX: text encoders, classifiers and decoders, for onnxruntime and what else reads the format."""

from pathlib import Path

from transformers import PreTrainedModel

from hf_mabprune.checkpoints.processors import Processor
from hf_mabprune.exports.base import EXPORTS, Export, Runner
from hf_mabprune.exports.onnx_graph import FILE, MODULES, REMEDY, Runtime, check_graph, graph_difference, write_graph


@EXPORTS.register("onnx")
class Onnx(Export):
    """A graph for any number of examples of any length, per-layer sizes included, in float32.

    Of encoders and their classifiers inputs are those that the tokenizer gives, outputs the tensors that the model
    gives, by their names. Of decoders keys and values come in and go out too, so that a text is read once.
    """

    modules = MODULES
    remedy = REMEDY

    def check(self, model: PreTrainedModel) -> None:
        """Refuses models of other things than text, encoder-decoders, and decoders that one graph cannot hold."""
        check_graph(model, "onnx")

    def write(self, model: PreTrainedModel, processor: Processor, folder: Path) -> None:
        """See `Export.write`."""
        write_graph(model, processor, folder / FILE)

    def difference(self, model: PreTrainedModel, folder: Path) -> float:
        """See `Export.difference`: in onnxruntime."""
        return graph_difference(model, folder / FILE, lambda found, own: (found - own).abs().max())

    def runner(self, folder: Path) -> Runner:
        """See `Export.runner`."""
        return Runtime(folder / FILE)
