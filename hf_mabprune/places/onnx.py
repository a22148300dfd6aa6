"""onnxruntime: what `mabprune export` writes."""

from pathlib import Path
from typing import ClassVar

import torch

from hf_mabprune.checkpoints.load import load_config, load_pruned, model_class_of
from hf_mabprune.checkpoints.processors import load_processor
from hf_mabprune.exports import EXPORTS
from hf_mabprune.exports.onnx_decoder import in_two_passes
from hf_mabprune.places.base import PLACES, Found, Place
from hf_mabprune.places.subject import Subject


class _Exported(Place):
    """An export, by its name."""

    export: ClassVar[str]

    def cannot(self, subject: Subject) -> str:
        """See `Place.cannot`: what the export refuses."""
        config = load_config(str(subject.folder))
        with torch.device("meta"):
            model = model_class_of(config, str(subject.folder))(config)
        try:
            EXPORTS.get(self.export)().check(model)
        except ValueError as error:
            return str(error)
        return ""

    def recipe(self, subject: Subject) -> str:
        """See `Place.recipe`."""
        return f"mabprune export DIR --to {self.export}"

    @torch.inference_mode()
    def reach(self, subject: Subject, work: Path) -> Found:
        """See `Place.reach`."""
        export = EXPORTS.get(self.export)()
        model = load_pruned(subject.folder, dtype=torch.float32).eval()
        export.write(model, load_processor("AutoTokenizer", str(subject.folder)), work)
        size = sum(file.stat().st_size for file in work.iterdir())
        run, note = export.runner(work), f"{size / 1e6:.1f} MB"
        difference = subject.difference(run(**subject.inputs)[0])
        if subject.generates:
            half = subject.inputs["input_ids"].shape[1] // 2
            difference = max(difference, subject.difference(in_two_passes(run, subject.inputs, half)))
            note += "; in one pass, and in two with keys and values of the first"
        return Found(difference, note=note)


@PLACES.register("onnx")
class InOnnx(_Exported):
    """onnxruntime, in float32."""

    export = "onnx"
    modules = EXPORTS.get("onnx").modules
    remedy = EXPORTS.get("onnx").remedy


@PLACES.register("onnx_int8")
class InInt8(_Exported):
    """onnxruntime, with weights of eight bits: a smaller file, and other logits."""

    export = "onnx_int8"
    modules = EXPORTS.get("onnx_int8").modules
    remedy = EXPORTS.get("onnx_int8").remedy
    tolerance: ClassVar[float] = 1.0
