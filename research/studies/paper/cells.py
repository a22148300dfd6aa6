"""The cells of one split of a table: every method cuts the same network, through the package's own search and surgery.

No checkpoint is written: all fractions come from the order of removal of one search, in memory.
Symbols: N rows; K arms, the hidden neurons.
"""

import io
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from transformers import PreTrainedModel, set_seed

from hf_mabprune.config import PruneConfig, check
from hf_mabprune.effects.dense_outputs import DenseOutputs
from hf_mabprune.evaluation.comparison import Comparison
from hf_mabprune.evaluation.quality import forward_of
from hf_mabprune.search.run import search
from hf_mabprune.selection.layouts import make_plans
from hf_mabprune.selection.selected import Selection
from hf_mabprune.session import Session, make_session
from hf_mabprune.surgery.cut import cut
from hf_mabprune.tasks.batch import LABELS, Batch
from hf_mabprune.tasks.table_task import FEATURES
from research.benchmarks.sessions import under
from research.studies.paper.fitting import all_rows, train_on
from research.studies.paper.methods import SAME_SPLIT, Method, Protocol, pruning_methods
from research.studies.paper.networks import Network, network
from research.studies.paper.rivals import RIVALS, SKLEARN_MLP, Rows, fit_rivals
from research.studies.paper.rows import CLASSIFICATION, DENSE, REGRESSION, Row
from research.studies.paper.tables import LABEL, Split, Table, data_sets
from research.studies.paper.train import RECIPE

NEAR_CHANCE = 0.02  # above the best constant answer: a network that is no better has nothing to lose
LEAST_BATCHES = 4  # of calibration rows, so that pulls of an arm do not all see the same ones


def cells(table: Table, number: int, split: Split, networks: Path, protocol: Protocol) -> list[Row]:
    """Makes all cells of one split.

    Args:
        table: Table.
        number: Number of the split, which is the seed of all that is drawn.
        split: The split.
        networks: Folder of trained networks.
        protocol: How cells are made.
    """
    made = Bench.of(table, number, split, network(table, number, split, networks), protocol)
    with redirect_stdout(io.StringIO()):  # a line for each round of each search
        rows = [*made.dense_rows()]
        for method in pruning_methods(protocol, number):
            rows += made.pruned_rows(method)
    return [*rows, *made.rival_rows()]


@dataclass(frozen=True)
class Bench:
    """Measures methods on one split of a table.

    Attributes:
        table, number: Table, and number of the split.
        network: Network that methods cut.
        protocol: How cells are made.
        session: Network, arms and batches; all test rows are one batch.
        train: All training rows.
        blank: Row of the dense network, which all others differ from in what was measured.
    """

    table: Table
    number: int
    network: Network
    protocol: Protocol
    session: Session
    train: Batch
    blank: Row

    @classmethod
    def of(cls, table: Table, number: int, split: Split, network: Network, protocol: Protocol) -> "Bench":
        """Makes everything ready; arguments as those of `cells`, and the trained network."""
        data, (model, task) = data_sets(table, split), (network.model, network.task)
        splits = {"calibration": data["train"], "validation": data["validation"], "test": data["test"]}
        size = max(1, min(protocol.batch_size, len(split.train) // LEAST_BATCHES))
        settings = run_settings(protocol, number, size, {"criterion": "magnitude"})
        session = make_session(settings, model, task.processor, splits, Accelerator(cpu=True), torch.float32)
        train, test = all_rows(task, data["train"]), all_rows(task, data["test"])
        session = replace(session, batches={**session.batches, "test": [test]})
        dense = Comparison(session).dense
        score = dense.metrics[task.main_metric]
        labels = test[LABELS].numpy()
        constant = np.bincount(labels).max() / len(labels) if table.classifies else 0.0
        blank = Row(
            suite=CLASSIFICATION if table.classifies else REGRESSION,
            setting=table.name,
            draw=number,
            method=DENSE,
            metric=task.main_metric,
            score=score,
            dense_score=score,
            chance=bool(score <= constant + NEAR_CHANCE),
        )
        return cls(table, number, network, protocol, session, train, blank)

    def dense_rows(self) -> Iterator[Row]:
        """Gives the rows of the dense network, as it is and trained further."""
        row = replace(self.blank, seconds=self.network.seconds, tokens=self.network.tokens)
        copy = cut(self.session.dense, {}, "per_layer")
        yield from self._measured(copy, row)

    def pruned_rows(self, method: Method) -> Iterator[Row]:
        """Gives the rows of one method: each fraction, as it was cut and trained further."""
        settings = run_settings(self.protocol, self.number, self.session.settings.task.batch_size, method.search)
        session = under(self._on_test() if method.variant == SAME_SPLIT else self.session, settings)
        sizes = settings.prune.sizes()
        plans = [make_plans(session.dense, session.arms, session.totals, size).search for size in sizes]
        found, cost = search(session, plans)
        row = replace(
            self.blank,
            method=method.name,
            reward=method.reward,
            variant=method.variant,
            pulls=cost.pulls,
            tokens=round(cost.forward_tokens),
            seconds=cost.seconds,
        )
        for fraction, plan in zip(self.protocol.fractions, plans, strict=True):
            selection = Selection.along(plan, found.order, 1, settings.prune.min_neurons)
            small = cut(session.dense, session.arms.kept_units(selection.kept), "per_layer")
            yield from self._measured(small, replace(row, fraction=fraction))

    def rival_rows(self) -> Iterator[Row]:
        """Gives the rows of the usual models for tables."""
        train, test = (
            Rows(batch[FEATURES].numpy().astype(float), batch[LABELS].numpy())
            for batch in (self.train, self.session.batches["test"][0])
        )
        wanted = [name for name in (*RIVALS, SKLEARN_MLP) if self.protocol.takes(name)]
        for rival in fit_rivals(wanted, train, test, self.table.classifies, self.protocol.tuning_rows, self.number):
            yield replace(self.blank, method=rival.name, score=rival.score, seconds=rival.seconds)

    def _measured(self, small: PreTrainedModel, row: Row) -> Iterator[Row]:
        """Measures a network, and where the row is no mistake trains it further and measures it again."""
        yield self._filled(small, row)
        if not row.variant:
            set_seed(self.number)  # all see the same rows in the same order
            train_on(small, self.train, replace(RECIPE, steps=self.protocol.tuning_steps))
            yield self._filled(small, replace(row, tuned=True))

    def _filled(self, small: PreTrainedModel, row: Row) -> Row:
        forward = forward_of(small, self.session.task)
        tested = Comparison(self.session).measured(forward, "test", intervals=False)
        score = tested.metrics[self.session.task.main_metric]
        return replace(row, score=score, loss=tested.loss, kl=float(tested.kl.mean()))

    def _on_test(self) -> Session:
        """Gives the session with rewards measured on the rows that are reported on."""
        session, (test,) = self.session, self.session.batches["test"]
        size = session.settings.task.batch_size
        batches = [test.rows(slice(at, at + size)) for at in range(0, test.examples - size + 1, size)]
        return replace(session, batches={**session.batches, "calibration": batches}, outputs=DenseOutputs())


def run_settings(protocol: Protocol, seed: int, batch_size: int, searching: dict[str, object]) -> PruneConfig:
    """Describes a run of the package that a search of the study is.

    Args:
        protocol: How cells are made.
        seed: Seed of the draw of calibration rows and of the policy.
        batch_size: Rows of the mini-batch of a pull.
        searching: Its section `search`.
    """
    target: Sequence[float] = list(protocol.fractions)
    return check(
        {
            "model": {"name": "in-memory"},
            "task": {
                "dataset": {"path": "in-memory"},
                "columns": {"label": LABEL},
                "batch_size": batch_size,
                "calibration_examples": protocol.calibration_rows,
            },
            "prune": {"arms": ["neuron"], "target": {"neurons": target}, "block_size": 1, "layout": "per_layer"},
            "search": searching,
            "compensation": None,
            "output": {"dir": "nowhere"},
            "seed": seed,
        }
    )
