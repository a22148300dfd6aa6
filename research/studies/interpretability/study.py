"""The runs of the study: a unit is all schedules that take one kind to one rate, for one network and seed, or all
controls of a network and seed. Networks and extractor are trained first, and kept.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from typing import Any, ClassVar

from hf_mabprune.progress import stage
from research.studies.interpretability.cells import Bench
from research.studies.interpretability.extractor import Extractor
from research.studies.interpretability.hub import HubBase
from research.studies.interpretability.images import read_images
from research.studies.interpretability.networks import Base
from research.studies.interpretability.protocol import (
    EXTRACTOR,
    FURTHER,
    IMAGE_MODEL,
    IMAGES,
    STUDIED,
    TEXT,
    TEXTS,
    VIT,
    VITS,
    Protocol,
)
from research.studies.interpretability.rows import CONTROL, KEY, Row
from research.studies.interpretability.similarity import SIMILARITIES, same_class
from research.studies.interpretability.subjects import ImageSubject
from research.studies.interpretability.texts import ENCODER, TextSubject, read_texts, sentence_similarity
from research.studies.runs import NETWORKS as NETWORKS_FOLDER
from research.studies.runs import Runs
from research.studies.sharing import shared_out


@dataclass(frozen=True)
class Unit:
    """What a process computes at one go.

    Attributes:
        network: One of `NETWORKS`.
        seed: Seed.
        kind: Kind of sparsity; empty for the controls.
        rate: Rate; 0 for the controls.
    """

    network: str
    seed: int
    kind: str = CONTROL
    rate: float = 0.0

    @property
    def name(self) -> str:
        """Names the unit in the store."""
        return (
            f"{self.network}/{self.seed}/{self.kind.replace(', ', '-').replace(' ', '-') or 'controls'}/{self.rate:g}"
        )


@dataclass(frozen=True)
class Study(Runs[Unit]):
    """Describes a run of the study.

    Attributes:
        data: Folder with cifar10/ and sst2/, each with train.parquet and test.parquet.
        out: Folder of cells and networks.
        protocol: How cells are made.
        text_model: Folder or Hub name of the text classifier that is pruned; empty leaves texts out.
        encoder: Folder or Hub name of the sentence encoder that texts are compared with.
        image_model: Folder or Hub name of an image classifier that is pruned; empty leaves it out.
        image_networks: What images are looked at through, of `networks.MAKERS`, by the name that cells have.
    """

    protocol: Protocol
    key: ClassVar[Sequence[str]] = KEY
    asked_by: ClassVar[Sequence[str]] = ("network", "seed", "kind", "rate")
    text_model: str = ""
    encoder: str = ENCODER
    image_model: str = ""
    image_networks: tuple[str, ...] = STUDIED[:2]

    def all_units(self) -> list[Unit]:
        """See `Runs.all_units`: the controls of a network and seed first."""
        named = [name for name, model in ((TEXT, self.text_model), (IMAGE_MODEL, self.image_model)) if model]
        networks = [*self.image_networks, *named]
        made = []
        for network in networks:
            for seed in range(self.protocol.seeds_of(network)):
                made.append(Unit(network, seed))
                made += [
                    Unit(network, seed, kind, rate)
                    for kind in self.protocol.kinds_of(network)
                    for rate in self.protocol.rates
                ]
        return made

    def inputs(self) -> dict[str, Any]:
        """See `Runs.inputs`."""
        recipes = zip("ivte", (IMAGES, VITS, TEXTS, EXTRACTOR), strict=True)
        return {
            "recipes": {name: asdict(each) for name, each in recipes},
            "further": FURTHER,
            "text": [self.text_model, self.encoder],
            **({IMAGE_MODEL: self.image_model} if self.image_model else {}),
        }

    def prepare(self, units: Sequence[Unit], processes: int) -> None:
        """See `Runs.prepare`: trains networks, and the extractor with the first of them."""
        bases = list(dict.fromkeys((unit.network, unit.seed) for unit in units))
        with stage("benchmark", len(bases), "networks") as work:
            for part, shared in ((bases[:1], 1), (bases[1:], processes)):
                for _ in shared_out([partial(self._prepare, *base) for base in part], shared):
                    work.count(work.done + 1)

    def bench(self, network: str, seed: int) -> Bench:
        """Makes everything ready to prune a network; trains it, and the extractor, where they are not there yet."""
        return _kept_bench(self, network, seed)

    def make_bench(self, network: str, seed: int) -> Bench:
        """Makes what `bench` keeps."""
        protocol = self.protocol
        if network == TEXT:
            rows, probes, test = read_texts(
                self.data / "sst2", protocol.texts, protocol.text_probes, protocol.text_test
            )
            found = sentence_similarity(self.encoder, probes.texts)
            words = "cosine of sentence embeddings (our adaptation for texts)"
            subject = TextSubject(self.text_model, rows, probes, test, TEXTS, words, found)
            return Bench(subject, network, seed, protocol, same_class(found, probes.labels))
        images = read_images(self.data / "cifar10", protocol.train, protocol.probes, protocol.test)
        extractor = Extractor(1.0, protocol.extractor_epochs, EXTRACTOR)
        similarity = SIMILARITIES[protocol.similarity](extractor)
        folder = self.out / NETWORKS_FOLDER
        found = similarity.matrix(images, folder)
        seen = similarity.network_images(images)
        base: Base | HubBase
        if network == IMAGE_MODEL:
            base, recipe = HubBase(self.image_model), TEXTS
        else:
            convolutional = network != VIT
            base = Base(
                network,
                protocol.width if convolutional else protocol.vit_width,
                protocol.base_epochs if convolutional else protocol.vit_epochs,
                IMAGES if convolutional else VITS,
            )
            recipe = replace(base.recipe, learning_rate=FURTHER * base.recipe.learning_rate)
        shown = ImageSubject(base, seen, folder, recipe, similarity.words, found)
        return Bench(shown, network, seed, protocol, same_class(found, seen.probes.labels))

    def _prepare(self, network: str, seed: int) -> None:
        """Trains a network and what it takes besides, if that is not there."""
        _ = self.bench(network, seed).network

    def cells(self, unit: Unit) -> list[Row]:
        """Makes the rows of a unit."""
        bench = self.bench(unit.network, unit.seed)
        return list(bench.control_rows() if unit.kind == CONTROL else bench.pruned_rows(unit.kind, unit.rate))


@lru_cache(maxsize=1)
def _kept_bench(study: Study, network: str, seed: int) -> Bench:
    """Keeps what the last unit of a process made ready, which the next one often takes too."""
    return study.make_bench(network, seed)
