"""The runs of the study: units of work, shared out over processes, resumable.

A unit is all schedules that take one kind to one rate, for one network and seed, or all controls of a network and
seed. It depends on nothing but its name and the protocol, and is computed with one thread, so that cells do not depend
on how many processes there are or on when any of them was stopped. Networks and extractor are trained first, and kept.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import pandas as pd

from hf_mabprune.progress import stage
from research.benchmarks.only import matching
from research.studies.interpretability.cells import Bench
from research.studies.interpretability.extractor import Extractor
from research.studies.interpretability.images import read_images
from research.studies.interpretability.networks import Base
from research.studies.interpretability.protocol import (
    EXTRACTOR,
    FURTHER,
    GOOGLENET,
    IMAGES,
    NETWORKS,
    TEXT,
    TEXTS,
    VITS,
    Protocol,
)
from research.studies.interpretability.rows import CONTROL, KEY, PROTOCOL, Row
from research.studies.interpretability.similarity import SIMILARITIES, same_class
from research.studies.interpretability.subjects import ImageSubject
from research.studies.interpretability.texts import ENCODER, TextSubject, read_texts, sentence_similarity
from research.studies.sharing import shared_out
from research.studies.store import Store

NETWORK_FOLDER = "networks"
LOOKED_AT = {GOOGLENET: "*", "vit": "*fc1", "tiny": "*"}  # of the vision transformer, the neurons


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
class Study:
    """Describes a run of the study.

    Attributes:
        data: Folder with cifar10/ and sst2/, each with train.parquet and test.parquet.
        out: Folder of cells and networks.
        protocol: How cells are made.
        text_model: Folder or Hub name of the text classifier that is pruned; empty leaves texts out.
        encoder: Folder or Hub name of the sentence encoder that texts are compared with.
        image_networks: What images are looked at through, of `networks.MAKERS`, by the name that cells have.
    """

    data: Path
    out: Path
    protocol: Protocol
    text_model: str = ""
    encoder: str = ENCODER
    image_networks: tuple[str, ...] = NETWORKS[:2]

    def units(self, only: Sequence[str] = ()) -> list[Unit]:
        """Lists the units, the controls of a network and seed first.

        Args:
            only: Filters as those of `matching`, of `network`, `seed`, `kind` and `rate`.

        Raises:
            ValueError: If a filter names what there is not.
        """
        networks = [*self.image_networks, *([TEXT] if self.text_model else [])]
        made = []
        for network in networks:
            for seed in range(self.protocol.seeds_of(network)):
                made.append(Unit(network, seed))
                made += [
                    Unit(network, seed, kind, rate)
                    for kind in self.protocol.kinds_of(network)
                    for rate in self.protocol.rates
                ]
        return matching(made, only, ("network", "seed", "kind", "rate"))

    def store(self) -> Store:
        """Opens the store.

        Raises:
            ValueError: If it was begun under other settings.
        """
        settings: dict[str, Any] = {
            PROTOCOL: asdict(self.protocol),
            "recipes": {
                name: asdict(each) for name, each in zip("ivte", (IMAGES, VITS, TEXTS, EXTRACTOR), strict=True)
            },
            "further": FURTHER,
            "text": [self.text_model, self.encoder],
        }
        return Store(self.out, settings, KEY)

    def run(self, units: Sequence[Unit], processes: int = 1) -> pd.DataFrame:
        """Makes the cells of all units that are not there yet, and puts those of all units together.

        Args:
            units: Units of `units`.
            processes: Processes that share the units, each with one thread.

        Returns:
            The rows, as `Store.collect` gives them.
        """
        store = self.store()
        todo = [unit for unit in units if not store.has(unit.name)]
        bases = list(dict.fromkeys((unit.network, unit.seed) for unit in todo))
        with stage("benchmark", len(bases), "networks") as work:
            first, rest = bases[:1], bases[1:]  # the first makes the extractor, which the others read
            for part in (first, rest):
                for _ in shared_out(
                    [partial(self._prepare, *base) for base in part], processes if part is rest else 1
                ):
                    work.count(work.done + 1)
        return store.fill(units, self.cells, processes, "cells")

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
        folder = self.out / NETWORK_FOLDER
        found = similarity.matrix(images, folder)
        seen = similarity.network_images(images)
        convolutional = network != "vit"
        base = Base(
            network,
            protocol.width if convolutional else protocol.vit_width,
            protocol.base_epochs if convolutional else protocol.vit_epochs,
            IMAGES if convolutional else VITS,
        )
        further = FURTHER * base.recipe.learning_rate
        shown = ImageSubject(base, seen, folder, further, similarity.words, found, LOOKED_AT[network])
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
