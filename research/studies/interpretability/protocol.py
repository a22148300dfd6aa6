"""How the study is made: kinds of sparsity, schedules, sizes; and which of them the quick one has."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hf_mabprune.sparsity import Step, iterative, one_shot
from research.models.training import Recipe
from research.studies.interpretability.mis import Trials
from research.studies.interpretability.similarity import SIMILARITIES

STRUCTURED, CONNECTION, FREE, UNSTRUCTURED, RANDOM = KINDS = (
    "structured",
    "connection, held",
    "connection, not held",
    "unstructured",
    "random weights",
)
OPTIONS: Mapping[str, Mapping[str, Any]] = {  # of `sparsify`
    STRUCTURED: {"kind": "structured"},
    CONNECTION: {"kind": "connection"},
    FREE: {"kind": "connection", "held": False},
    UNSTRUCTURED: {"kind": "unstructured", "scope": "global"},
    RANDOM: {"kind": "unstructured", "scope": "global", "criterion": "random"},
}
AS_CUT, ONE_SHOT, EQUAL, UNEQUAL, LONG = (
    "one-shot, no training",
    "one-shot",
    "iterative, equal training",
    "iterative, more training",
    "one-shot, more training",
)
GOOGLENET, VIT, TEXT = STUDIED = ("googlenet", "vit", "text")
IMAGE_MODEL = "image"  # a classifier by name, beside those
NETWORKS = (*STUDIED, IMAGE_MODEL)

Schedule = Callable[[float, "Protocol"], Sequence[Step]]
SCHEDULES: Mapping[str, Schedule] = {
    AS_CUT: lambda rate, protocol: one_shot(rate),
    ONE_SHOT: lambda rate, protocol: one_shot(rate, protocol.epochs),
    EQUAL: lambda rate, protocol: iterative(rate, protocol.steps, protocol.epochs),
    UNEQUAL: lambda rate, protocol: iterative(rate, protocol.steps, protocol.epochs, equal=False),
    LONG: lambda rate, protocol: one_shot(rate, protocol.longest),
}


@dataclass(frozen=True)
class Protocol:
    """Says how cells are made.

    Attributes:
        seeds: Seeds of GoogLeNet: weights, order of images, draws.
        other_seeds: Seeds of the vision transformer; networks that are there already have one.
        rates: Parts of the weights that go.
        epochs: Further training, in all; what each step has where the training is not equal.
        steps: Steps of iterative schedules.
        schedules: Names of `SCHEDULES` that GoogLeNet has.
        width, vit_width: Factors of channels.
        base_epochs, vit_epochs: Training of the networks that are pruned.
        train, probes, test: Images of each use.
        tasks, references: N and K of the score.
        similarity: One of `SIMILARITIES`.
        extractor_epochs: Training of the extractor.
        texts, text_probes, text_test: Texts of each use.
        text_epochs: Further training of the text network.
    """

    seeds: int = 3
    other_seeds: int = 2
    rates: tuple[float, ...] = (0.4, 0.8)
    epochs: int = 2
    steps: int = 3
    schedules: tuple[str, ...] = tuple(SCHEDULES)
    width: float = 1.0
    vit_width: float = 1.0
    base_epochs: int = 30
    vit_epochs: int = 60
    train: int = 8_000
    probes: int = 2_000
    test: int = 4_000
    tasks: int = 20
    references: int = 9
    similarity: str = "self_supervised"
    extractor_epochs: int = 60
    texts: int = 4_000
    text_probes: int = 2_000
    text_test: int = 1_821
    text_epochs: int = 1

    def __post_init__(self) -> None:
        if self.similarity not in SIMILARITIES:
            raise ValueError(f"similarity must be one of {', '.join(SIMILARITIES)}, got '{self.similarity}'")
        if min(self.seeds, self.other_seeds, self.steps) < 1:
            raise ValueError("seeds, other_seeds and steps must be at least 1")
        halves = 2 if SIMILARITIES[self.similarity].halves else 1
        for inputs in (self.probes // halves, self.text_probes):
            self.trials.check(inputs)

    @property
    def trials(self) -> Trials:
        """What units are asked."""
        return Trials(self.tasks, self.references)

    @property
    def longest(self) -> int:
        """Epochs of the iterative schedules that train more."""
        return self.epochs * self.steps

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> "Protocol":
        """Reads what `asdict` and JSON have made of one."""
        values: dict[str, Any] = {**stored, "rates": tuple(stored["rates"]), "schedules": tuple(stored["schedules"])}
        return cls(**values)

    def seeds_of(self, network: str) -> int:
        """Counts the seeds of a network."""
        return {VIT: self.other_seeds, TEXT: 1, IMAGE_MODEL: 1}.get(network, self.seeds)

    def kinds_of(self, network: str) -> tuple[str, ...]:
        """Gives the kinds of a network; that of texts is shown beside random masks."""
        return KINDS if network == TEXT else KINDS[:-1]

    def schedules_of(self, network: str) -> tuple[str, ...]:
        """Gives the schedules of a network: at once, for all but GoogLeNet."""
        if network == TEXT:
            return (AS_CUT, ONE_SHOT) if self.text_epochs else (AS_CUT,)
        return (AS_CUT, ONE_SHOT) if network in (VIT, IMAGE_MODEL) else self.schedules


QUICK = Protocol(
    seeds=2,
    other_seeds=1,
    epochs=2,
    steps=2,
    schedules=(AS_CUT, ONE_SHOT, EQUAL, UNEQUAL),
    width=0.125,
    vit_width=0.25,
    base_epochs=16,
    vit_epochs=16,
    train=800,
    probes=400,
    test=500,
    tasks=8,
    extractor_epochs=20,
    texts=200,
    text_probes=200,
    text_test=200,
    text_epochs=0,
)
IMAGES = Recipe(steps=0, batch_size=64, learning_rate=3e-3, weight_decay=0.05)
VITS = Recipe(steps=0, batch_size=64, learning_rate=1e-3, weight_decay=0.05)
FURTHER = 0.25  # of the learning rate of the first training
TEXTS = Recipe(steps=0, batch_size=32, learning_rate=2e-5, weight_decay=0.01, bfloat16=False)
EXTRACTOR = Recipe(steps=0, batch_size=256, learning_rate=2e-3, weight_decay=1e-4, bfloat16=False)
