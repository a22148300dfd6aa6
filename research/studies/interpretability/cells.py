"""The cells of one unit of work: all schedules that take one kind to one rate, or all controls of a seed."""

import time
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import nn

from hf_mabprune.sparsity import run_schedule
from research.studies.interpretability.activations import side_by_side
from research.studies.interpretability.mis import (
    Scores,
    random_directions,
    shuffled,
    unit_scores,
    varying,
)
from research.studies.interpretability.protocol import OPTIONS, SCHEDULES, TEXT, Protocol
from research.studies.interpretability.rows import (
    DIRECTIONS,
    TRAINED_LONG,
    TRAINED_ON,
    UNPRUNED,
    UNTRAINED,
    Row,
)
from research.studies.interpretability.subjects import Subject


@dataclass
class Bench:
    """Prunes one network in many ways, and measures what is left.

    Attributes:
        subject: What is pruned.
        name: One of `protocol.NETWORKS`.
        seed: Seed of the network, of training and of tasks.
        protocol: How cells are made.
        same_class: Share of probes whose nearest other probe is of their class.
    """

    subject: Subject
    name: str
    seed: int
    protocol: Protocol
    same_class: float

    @cached_property
    def network(self) -> nn.Module:
        """The network, not pruned."""
        return self.subject.network(self.seed)

    @cached_property
    def before(self) -> torch.Tensor:
        """Scores of its units, [U]."""
        return self._scores(side_by_side(self.subject.activations(self.network))).mis

    def pruned_rows(self, kind: str, rate: float) -> Iterator[Row]:
        """Gives the cells of a kind and a rate."""
        for schedule in self.protocol.schedules_of(self.name):
            started = time.perf_counter()
            network = deepcopy(self.network)
            row = self.pruned(network, kind, schedule, rate)
            yield self._measured(network, row, started)

    def pruned(self, network: nn.Module, kind: str, schedule: str, rate: float) -> Row:
        """Prunes and trains a network, in place; gives its row, not measured."""
        steps = SCHEDULES[schedule](rate, self._protocol)
        sparsity, figures = run_schedule(network, steps, self._train, seed=self.seed, **OPTIONS[kind])
        sparsity.make_permanent()
        network.eval()
        return replace(
            self._blank(schedule),
            kind=kind,
            rate=rate,
            epochs=sum(step.epochs for step in steps),
            cut=figures[-1].pruned,
            zeros=sparsity.achieved,
        )

    def control_rows(self) -> Iterator[Row]:
        """Gives the cells of all controls: the network as it is, trained further, fresh, and its random directions."""
        protocol = self._protocol
        yield self._measured(self.network, self._blank(UNPRUNED), time.perf_counter())
        for name, epochs in ((TRAINED_ON, protocol.epochs), (TRAINED_LONG, protocol.longest)):
            if epochs:
                started, network = time.perf_counter(), deepcopy(self.network)
                self._train(network, epochs)
                yield self._measured(network, replace(self._blank(name), epochs=epochs), started)
        started, fresh = time.perf_counter(), self.subject.untrained(self.seed)
        yield self._measured(fresh, self._blank(UNTRAINED), started)
        started = time.perf_counter()
        units = self.subject.activations(self.network)
        turned = {name: random_directions(found, self.seed) for name, found in units.items()}
        yield self._scored(side_by_side(turned), self._blank(DIRECTIONS), started)

    @property
    def _protocol(self) -> Protocol:
        """The protocol, with the further training of this network."""
        return replace(self.protocol, epochs=self.protocol.text_epochs) if self.name == TEXT else self.protocol

    def _train(self, network: nn.Module, epochs: float) -> None:
        self.subject.train(network, epochs, self.seed)

    def _blank(self, schedule: str) -> Row:
        return Row(
            network=self.name,
            similarity=self.subject.similarity_name,
            same_class=self.same_class,
            seed=self.seed,
            schedule=schedule,
        )

    def _measured(self, network: nn.Module, row: Row, started: float) -> Row:
        """Fills in accuracy and scores."""
        row = replace(row, accuracy=self.subject.accuracy(network))
        return self._scored(side_by_side(self.subject.activations(network)), row, started)

    def _scored(self, units: torch.Tensor, row: Row, started: float) -> Row:
        """Fills in scores of units, [P, U]."""
        there, trials = varying(units), self.protocol.trials
        row = replace(row, units=units.shape[1], gone=int((~there).sum()))
        if there.any():
            scores = self._scores(units)
            mis, divided = scores.mis, replace(scores, alpha=1 / trials.alpha).mis
            chance = self._scores(shuffled(units[:, there], self.seed)).mis
            row = replace(
                row,
                mis=mis[there].mean().item(),
                solved=scores.solved[there].mean().item(),
                mis_divided=divided[there].mean().item(),
                mis_all=torch.where(there, mis, 0.5).mean().item(),
                mis_before=self.before[there].mean().item(),
                shuffled=chance.mean().item(),
                shuffled_error=(chance.std(correction=0) / len(chance) ** 0.5).item(),
            )
        return replace(row, seconds=time.perf_counter() - started)

    def _scores(self, units: torch.Tensor) -> Scores:
        return unit_scores(units, self.subject.similarity, self.protocol.trials, self.seed)
