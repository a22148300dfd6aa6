"""Plain Auto classes, where this package cannot be imported."""

from pathlib import Path

from hf_mabprune.checkpoints.ways import is_known
from hf_mabprune.places.base import PLACES, Found, Place
from hf_mabprune.places.elsewhere import run_elsewhere
from hf_mabprune.places.subject import Subject

LINES = """
import torch
import transformers
model = transformers.{auto_class}.from_pretrained(folder, dtype=torch.float32{options}).eval()
with torch.inference_mode():
    outputs = model(**inputs)[0]
"""
REMOTE = ", trust_remote_code=True"


@PLACES.register("without_package")
class WithoutPackage(Place):
    """Transformers alone, without this package: stock classes, or the file beside the weights.

    Uniform sizes load as any checkpoint does; of per-layer sizes `trust_remote_code=True` runs `modeling_pruned.py`.
    """

    def cannot(self, subject: Subject) -> str:
        """See `Place.cannot`: a type of a plugin."""
        known = is_known(subject.model_type)
        return "" if known else f"transformers does not know model type {subject.model_type}"

    def recipe(self, subject: Subject) -> str:
        """See `Place.recipe`."""
        return f'{subject.auto_class}.from_pretrained("DIR"{self._options(subject)})'

    def reach(self, subject: Subject, work: Path) -> Found:
        """See `Place.reach`: in another process."""
        lines = LINES.format(auto_class=subject.auto_class, options=self._options(subject))
        return Found(subject.difference(run_elsewhere(lines, subject, work)))

    def _options(self, subject: Subject) -> str:
        return REMOTE if subject.layout == "per_layer" else ""
