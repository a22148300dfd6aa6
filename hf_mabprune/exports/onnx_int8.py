"""ONNX in eight bits: the weights of text encoders and decoders as integers, for onnxruntime."""

from pathlib import Path
from typing import ClassVar

from transformers import PreTrainedModel

from hf_mabprune.checkpoints.processors import Processor
from hf_mabprune.exports.base import EXPORTS, Export, Runner
from hf_mabprune.exports.onnx_graph import (
    FILE,
    MODULES,
    REMEDY,
    Runtime,
    check_graph,
    graph_difference,
    quietly,
    write_graph,
)

FLOAT_FILE = "float.onnx"


@EXPORTS.register("onnx_int8")
class OnnxInt8(Export):
    """The graph of `onnx` with weights of 8 bits, one scale an output (onnxruntime's dynamic quantisation).

    Activations get their scales while it runs, so that no data are needed; they are rounded too, so outputs differ
    from the model's by far more than in float32. `export --measure` says what that costs.
    """

    modules = MODULES
    remedy = REMEDY
    tolerance: ClassVar[float] = 0.5  # more is no rounding
    relative: ClassVar[bool] = True
    after: ClassVar[str] = "onnx"

    def check(self, model: PreTrainedModel) -> None:
        """Refuses models of other things than text, encoder-decoders, and decoders that one graph cannot hold."""
        check_graph(model, "onnx_int8")

    def write(self, model: PreTrainedModel, processor: Processor, folder: Path) -> None:
        """See `Export.write`."""
        from onnxruntime.quantization import QuantType, quantize_dynamic

        write_graph(model, processor, folder / FLOAT_FILE)
        with quietly():
            quantize_dynamic(folder / FLOAT_FILE, folder / FILE, per_channel=True, weight_type=QuantType.QInt8)
        for file in folder.glob(f"{FLOAT_FILE}*"):  # weights may lie in a file of their own
            file.unlink()

    def difference(self, model: PreTrainedModel, folder: Path) -> float:
        """See `Export.difference`: root of the mean square, as a fraction of that of the model's outputs."""
        return graph_difference(model, folder / FILE, lambda found, own: (found - own).norm() / own.norm())

    def runner(self, folder: Path) -> Runner:
        """See `Export.runner`."""
        return Runtime(folder / FILE)
