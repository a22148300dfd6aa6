"""Plain Auto classes, in float32 and in half precision."""

from pathlib import Path
from typing import ClassVar

import torch
import transformers
from transformers import PreTrainedModel

from hf_mabprune.places.base import PLACES, Found, Place
from hf_mabprune.places.subject import Subject


class _Auto(Place):
    """Loading in this process, where this package has been imported."""

    at_end: ClassVar[bool] = True
    dtype: ClassVar[torch.dtype] = torch.float32

    def recipe(self, subject: Subject) -> str:
        """See `Place.recipe`."""
        first = "import hf_mabprune; " if subject.layout == "per_layer" else ""
        return f'{first}{subject.auto_class}.from_pretrained("DIR", dtype={self.dtype})'

    @torch.inference_mode()
    def reach(self, subject: Subject, work: Path) -> Found:
        """See `Place.reach`."""
        loader = getattr(transformers, subject.auto_class)
        model: PreTrainedModel = loader.from_pretrained(subject.folder, dtype=self.dtype).eval()
        inputs = {
            name: tensor.to(self.dtype) if tensor.is_floating_point() else tensor
            for name, tensor in subject.inputs.items()
        }
        return Found(subject.difference(model(**inputs)[0]))


@PLACES.register("auto")
class Auto(_Auto):
    """`AutoModel*.from_pretrained`, after `import hf_mabprune` where sizes are per layer."""


@PLACES.register("bfloat16")
class BFloat16(_Auto):
    """The same in bfloat16: eight bits of precision, so that logits differ in their third digit."""

    dtype: ClassVar[torch.dtype] = torch.bfloat16
    tolerance: ClassVar[float] = 0.5
