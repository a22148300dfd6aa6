"""The deep settings of the study: which data, which task, which network."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_mabprune.config import PruneConfig, check
from research.benchmarks.finetuning import Training
from research.models.training import Recipe
from research.studies.paper.deep.data import SPLITS
from research.studies.paper.deep.networks import Encoder, Network, Reader, VisionTransformer
from research.studies.paper.deep.stories import KINDS
from research.studies.paper.methods import Protocol

PURPOSES = {"calibration": "train", "validation": "validation", "test": "test"}
BLOCKS = 16  # of neurons in a layer: an arm is one of them


@dataclass(frozen=True)
class Setting:
    """Describes one deep setting.

    Attributes:
        name: Its name.
        about: What it is of: image, text or reasoning.
        source: Folder of its data, one of `data.SOURCES`.
        task: Section `task` of the settings of a run, without its data set; it may have a batch size of its own.
        network: What is pruned.
        width: Neurons of a layer.
        tuning_rate: Learning rate of the training after a removal.
    """

    name: str
    about: str
    source: str
    task: dict[str, Any]
    network: Network
    width: int
    tuning_rate: float

    def settings(
        self, data: Path, networks: Path, protocol: Protocol, draw: int, search: dict[str, Any]
    ) -> PruneConfig:
        """Describes a run of the package that a search of the study is.

        Args:
            data: Folder of all sources.
            networks: Folder of trained networks.
            protocol: How cells are made.
            draw: Seed of the draw of calibration rows, of the policy and of training.
            search: Its section `search`.
        """
        rows = self.task.get("batch_size", protocol.batch_size)
        files = {split: str(data / self.source / f"{split}.parquet") for split in SPLITS}
        fractions: Sequence[float] = list(protocol.fractions)
        return check(
            {
                "model": {"name": str(networks / self.name)},
                "task": {
                    **self.task,
                    "batch_size": rows,
                    "calibration_examples": protocol.calibration_rows,
                    "dataset": {"path": "parquet", "data_files": files},
                    "splits": PURPOSES,
                },
                "prune": {
                    "arms": ["neuron"],
                    "target": {"neurons": fractions},
                    "block_size": self.width // BLOCKS,
                    "layout": "per_layer",
                },
                "search": search,
                "compensation": None,
                "recovery": {
                    "examples": protocol.tuning_steps * rows,
                    "batch_size": rows,
                    "learning_rate": self.tuning_rate,
                    "alpha": 0.0,
                },
                "output": {"dir": "nowhere"},
                "seed": draw,
            }
        )


def _image(name: str, recipe: Recipe, patch_size: int, mirrored: bool) -> Setting:
    network = VisionTransformer(recipe, patch_size, mirrored)
    return Setting(name, "image", name, {"type": "image_classification"}, network, 384, 3e-4)


def _text(name: str, about: str, source: str, task: dict[str, Any], epochs: float) -> Setting:
    return Setting(name, about, source, {"max_length": 96, **task}, Encoder(Training(epochs=epochs)), 1536, 3e-5)


def _stories(kind: str, steps: int) -> Setting:
    recipe = Recipe(steps=steps, batch_size=256, learning_rate=2e-3, bfloat16=False)
    task = {"type": "sequence_classification", "columns": {"text": "question", "text_pair": "story"}}
    return Setting(kind, "reasoning", kind, task, Reader(recipe), 256, 3e-4)


_CLASSES = {"type": "sequence_classification"}
_PAIRS = {"text": "premise", "text_pair": "hypothesis"}
_CHOICES = {"type": "multiple_choice", "max_length": 64, "batch_size": 8}  # of four choices: 32 texts
_STEPS = {"one_fact": 400, "two_facts": 1_000, "three_facts": 3_000, "counting": 600, "yes_no": 1_200}

SETTINGS = {
    setting.name: setting
    for setting in (
        _image("mnist", Recipe(steps=4_000, batch_size=128, learning_rate=1e-3, weight_decay=0.05), 8, False),
        _image("cifar10", Recipe(steps=2_400, batch_size=256, learning_rate=2e-3, weight_decay=0.05), 4, True),
        _text("sst2", "text", "sst2", _CLASSES, 2),
        _text("agnews", "text", "agnews", _CLASSES, 2),
        _text("sick_entailment", "reasoning", "nli_sick", {**_CLASSES, "columns": {**_PAIRS, "label": "label"}}, 3),
        _text(
            "sick_relatedness",
            "reasoning",
            "nli_sick",
            {"type": "regression", "columns": {**_PAIRS, "label": "relatedness"}},
            3,
        ),
        _text("openbookqa", "reasoning", "openbookqa", _CHOICES, 3),
        *(_stories(kind, _STEPS[kind]) for kind in KINDS),
    )
}
QUICK_SETTINGS = ("one_fact", "yes_no")
FULL = Protocol(splits=3, fractions=(0.1, 0.3, 0.5), tuning_steps=8)
QUICK = Protocol(splits=1, fractions=(0.1, 0.5), tuning_steps=4)
