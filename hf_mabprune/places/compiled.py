"""`torch.compile`."""

from pathlib import Path
from typing import ClassVar

import torch

from hf_mabprune.checkpoints.load import load_pruned
from hf_mabprune.places.base import PLACES, Found, Place
from hf_mabprune.places.subject import Subject


@PLACES.register("torch_compile")
class TorchCompile(Place):
    """`torch.compile` with its usual backend, inductor, which needs a C++ compiler."""

    tolerance: ClassVar[float] = 1e-3

    def recipe(self, subject: Subject) -> str:
        """See `Place.recipe`."""
        first = "import hf_mabprune; " if subject.layout == "per_layer" else ""
        return f'{first}torch.compile({subject.auto_class}.from_pretrained("DIR"))'

    @torch.inference_mode()
    def reach(self, subject: Subject, work: Path) -> Found:
        """See `Place.reach`."""
        compiled = torch.compile(load_pruned(subject.folder, dtype=torch.float32).eval())
        try:
            return Found(subject.difference(compiled(**subject.inputs)[0]))
        finally:
            torch.compiler.reset()
