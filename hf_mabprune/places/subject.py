"""The checkpoint that places are tried with: its folder, inputs, and what plain Auto classes give for them.

Shapes: B examples, T tokens, C classes or words of the vocabulary.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from hf_mabprune.architectures.base import PRUNED_PREFIX
from hf_mabprune.architectures.positions import max_positions
from hf_mabprune.checkpoints import modeling_pruned
from hf_mabprune.checkpoints.load import load_pruned
from hf_mabprune.checkpoints.processors import load_processor

TEXTS = (
    "A gripping film that never loses its nerve.",
    "The plot is thin, the jokes are worn, and the ending comes an hour too late.",
    "Nobody in the town had seen so much snow in a single night.",
    "Water boils at a lower temperature on high mountains, where the air is thin.",
)
IMAGE = ("num_channels", "image_size")  # fields of a config
GENERAL = "AutoModel"  # fits every model, and has no head


@dataclass(frozen=True)
class Subject:
    """A stored checkpoint to try places with.

    Attributes:
        folder: Folder of the checkpoint.
        model_type: Model type of the dense model.
        auto_class: Name of the AutoModel class that loads it.
        layout: "uniform" where stock classes load it, else "per_layer".
        inputs: Arguments of a forward pass, on the CPU; of token ids [B, T].
        expected: First output for them, [B, C] or [B, T, C], float32, of plain Auto classes.
        texts: What the inputs were made from, B of them; none where they are not of texts.
        dense: Folder or Hub name of the dense model, where it is known.
        pythons: Name of a place -> Python program of an environment that it needs for itself.
    """

    folder: Path
    model_type: str
    auto_class: str
    layout: str
    inputs: dict[str, torch.Tensor]
    expected: torch.Tensor
    texts: tuple[str, ...] = ()
    dense: str | None = None
    pythons: Mapping[str, str] = field(default_factory=dict)

    @property
    def generates(self) -> bool:
        """Tells whether it is a decoder that continues a text."""
        return self.auto_class == "AutoModelForCausalLM"

    def difference(self, outputs: torch.Tensor) -> float:
        """Gives the largest absolute difference of first outputs from those expected, padding left out."""
        apart = (outputs.detach().float().cpu() - self.expected).abs()
        counted = self.inputs.get("attention_mask")
        if counted is not None and apart.ndim > 2 and counted.shape == apart.shape[:2]:
            apart = apart[counted.bool()]
        return float(apart.max())


@torch.inference_mode()
def subject_of(
    folder: str | Path,
    inputs: Mapping[str, torch.Tensor] | None = None,
    auto_class: str | None = None,
    dense: str | None = None,
    pythons: Mapping[str, str] | None = None,
) -> Subject:
    """Reads a checkpoint, and runs it once.

    Args:
        folder: Folder of the checkpoint.
        inputs: Arguments of a forward pass; None makes some: a few sentences, or an image.
        auto_class: Name of the AutoModel class that loads it; None looks for one that has the model's head.
        dense: Folder or Hub name of the dense model.
        pythons: Name of a place -> Python program of an environment of its own.

    Raises:
        ValueError: If it is no checkpoint that can be loaded, or no inputs can be made for it.
        OSError: If there is none.
    """
    model = load_pruned(folder, dtype=torch.float32).eval()
    texts: tuple[str, ...] = ()
    if inputs is None:
        inputs, texts = _inputs_of(model, str(folder))
    config = type(model.config)
    return Subject(
        folder=Path(folder),
        model_type=model.config.model_type.removeprefix(PRUNED_PREFIX),
        auto_class=auto_class or _auto_class_of(model),
        layout="per_layer" if issubclass(config, modeling_pruned.PerLayerConfig) else "uniform",
        inputs=dict(inputs),
        expected=model(**inputs)[0].float(),
        texts=texts,
        dense=dense,
        pythons=dict(pythons or {}),
    )


def _auto_class_of(model: PreTrainedModel) -> str:
    """Finds the AutoModel class with the head of a model, the one without a head where no other builds it."""
    found = modeling_pruned.auto_classes(type(model.config))
    names = [name for name, models in found.items() if type(model) in models]
    heads = [name for name in names if name.startswith(f"{GENERAL}For")]
    return min(heads or names or [GENERAL], key=len)


def _inputs_of(model: PreTrainedModel, folder: str) -> tuple[dict[str, torch.Tensor], tuple[str, ...]]:
    """Makes inputs of a model, and gives the texts that they are made of."""
    config: PreTrainedConfig = model.config
    if model.main_input_name == "pixel_values" and all(hasattr(config, name) for name in IMAGE):
        channels, side = (getattr(config, name) for name in IMAGE)
        return {"pixel_values": torch.linspace(-1, 1, channels * side * side).view(1, channels, side, side)}, ()
    if model.main_input_name != "input_ids":
        raise ValueError(f"places are tried with models of texts or images, {type(model).__name__} is of neither")
    tokenizer: Any = load_processor("AutoTokenizer", folder)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    length = min(64, max_positions(config))
    options = {"padding": True, "padding_side": "right", "truncation": True, "max_length": length}
    inputs = dict(tokenizer(list(TEXTS), return_tensors="pt", **options))
    if type(model).__name__.endswith("ForMultipleChoice"):
        inputs = {name: tensor.view(2, 2, -1) for name, tensor in inputs.items()}
    if config.is_encoder_decoder:
        inputs["decoder_input_ids"] = inputs["input_ids"]
    return inputs, TEXTS
