"""Accelerate's `device_map`: as many layers as fit on the devices, the others on the disk."""

from pathlib import Path

import torch
import transformers

from hf_mabprune.places.base import PLACES, Found, Place
from hf_mabprune.places.subject import Subject

SHARE = 0.85  # of the weights that memory is said to hold


@PLACES.register("device_map")
class DeviceMap(Place):
    """`device_map="auto"`, with memory for a part of the weights: the others come from the disk, layer by layer."""

    def recipe(self, subject: Subject) -> str:
        """See `Place.recipe`."""
        first = "import hf_mabprune; " if subject.layout == "per_layer" else ""
        options = 'device_map="auto", max_memory={"cpu": "..."}, offload_folder="..."'
        return f'{first}{subject.auto_class}.from_pretrained("DIR", {options})'

    @torch.no_grad()
    def reach(self, subject: Subject, work: Path) -> Found:
        """See `Place.reach`."""
        loader = getattr(transformers, subject.auto_class)
        size = sum(file.stat().st_size for file in subject.folder.glob("*.safetensors"))
        stored = loader.from_pretrained(subject.folder, dtype="auto").dtype.itemsize
        memory = {"cpu": int(SHARE * size * torch.float32.itemsize / stored)}
        model = loader.from_pretrained(
            subject.folder, dtype=torch.float32, device_map="auto", max_memory=memory, offload_folder=str(work)
        ).eval()
        on_disk = [name for name, device in model.hf_device_map.items() if device == "disk"]
        note = f"{len(on_disk)} of {len(model.hf_device_map)} parts on disk"
        return Found(subject.difference(model(**subject.inputs)[0]), note=note)
