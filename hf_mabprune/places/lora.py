"""peft: a LoRA on a pruned model, with the target modules that peft knows for the dense one."""

from pathlib import Path

import torch

from hf_mabprune.checkpoints.adapters import register_lora_targets
from hf_mabprune.checkpoints.load import load_pruned
from hf_mabprune.places.base import PLACES, Found, Place
from hf_mabprune.places.subject import Subject


@PLACES.register("peft")
class Peft(Place):
    """A LoRA by peft: added, a step of training, saved, and read back onto the checkpoint."""

    modules = ("peft",)
    remedy = "pip install 'hf_mabprune[peft]'"

    def recipe(self, subject: Subject) -> str:
        """See `Place.recipe`."""
        first = "import peft, hf_mabprune; " if subject.layout == "per_layer" else ""
        return f'{first}get_peft_model({subject.auto_class}.from_pretrained("DIR"), LoraConfig())'

    def cannot(self, subject: Subject) -> str:
        """See `Place.cannot`."""
        known = subject.model_type in register_lora_targets()
        return "" if known else f"peft knows no target modules for {subject.model_type}: name them (target_modules)"

    def reach(self, subject: Subject, work: Path) -> Found:
        """See `Place.reach`: of the trained LoRA, before and after it was stored; a new one changes nothing."""
        from peft import LoraConfig, PeftModel, get_peft_model

        model = get_peft_model(load_pruned(subject.folder, dtype=torch.float32), LoraConfig()).eval()
        with torch.no_grad():
            new = subject.difference(model(**subject.inputs)[0])
        own = [parameter for parameter in model.parameters() if parameter.requires_grad]
        model(**subject.inputs)[0].float().square().mean().backward()
        torch.optim.SGD(own, 0.1).step()
        model.save_pretrained(str(work))
        again = PeftModel.from_pretrained(load_pruned(subject.folder, dtype=torch.float32), str(work)).eval()
        with torch.no_grad():
            stored = (again(**subject.inputs)[0] - model(**subject.inputs)[0]).abs().max()
        return Found(max(new, float(stored)), note=f"{sum(each.numel() for each in own):,} parameters trained")
