"""The cells of one draw of a deep setting: every method cuts the same network, through the package's own stages.

No checkpoint is written: all fractions come from the order of removal of one search, in memory.
Symbols: N examples; K arms, blocks of hidden neurons.
"""

import io
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from hf_mabprune.config import PruneConfig
from hf_mabprune.data.splits import load_splits
from hf_mabprune.evaluation.comparison import Comparison
from hf_mabprune.evaluation.quality import Evaluation, forward_of
from hf_mabprune.recovery.recover import recover
from hf_mabprune.runtime.accelerator import make_accelerator
from hf_mabprune.search.run import search
from hf_mabprune.selection.layouts import make_plans
from hf_mabprune.selection.selected import Selection
from hf_mabprune.session import Session, open_session
from hf_mabprune.surgery.cut import cut
from hf_mabprune.tasks.base import Task
from hf_mabprune.tasks.sampling import evaluation_batches
from research.benchmarks.sessions import under
from research.studies.paper.methods import CONTROLS, CRITERIA, POLICIES, Method, Protocol, searching
from research.studies.paper.rows import DEEP, DENSE, KL, LOSS, Row

NEAR_CHANCE = 0.05  # above the best constant answer: a network that is no better has nothing to lose
TEST_BATCH = 250  # test examples that are measured at a time
WITH_KL = ("ucb1", "thompson")  # policies that measure the divergence, beside the paper's reward
Settings = Callable[[dict[str, Any]], PruneConfig]  # section `search` -> settings of a run


def deep_methods(protocol: Protocol) -> Iterator[Method]:
    """Lists the methods that cut a network.

    Args:
        protocol: How cells are made.
    """
    for reward, names in ((LOSS, (*POLICIES, *CONTROLS)), (KL, WITH_KL)):
        for name in names:
            yield Method(name, reward, searching(protocol, name, reward))
    for name in CRITERIA:
        yield Method(name, search={"criterion": name})


def cells(name: str, draw: int, settings: Settings, figures: dict[str, Any], protocol: Protocol) -> list[Row]:
    """Makes all cells of one draw.

    Args:
        name: Name of the setting.
        draw: Number of the draw, which is the seed of all that is drawn.
        settings: Gives the settings of a run.
        figures: Those of the trained network.
        protocol: How cells are made.
    """
    made = Bench.of(name, draw, settings)
    with redirect_stdout(io.StringIO()):  # a line for each round of each search
        rows = [*made.dense_rows(figures)]
        for method in deep_methods(protocol):
            rows += made.pruned_rows(method)
    return rows


@dataclass(frozen=True)
class Bench:
    """Measures methods on one draw of a setting.

    Attributes:
        settings: Gives the settings of a run.
        session: Network, arms and batches; those of the test split lie where the network does.
        blank: Row of the dense network, which all others differ from in what was measured.
    """

    settings: Settings
    session: Session
    blank: Row

    @classmethod
    def of(cls, name: str, draw: int, settings: Settings) -> "Bench":
        """Makes everything ready; arguments as those of `cells`."""
        given = settings({"criterion": "magnitude"})
        session = open_session(given, make_accelerator())
        larger = given.task.model_copy(update={"batch_size": TEST_BATCH})
        test = evaluation_batches(larger, session.task, load_splits(given.task)["test"], draw)
        test = [batch.to(session.dense.device) for batch in test]
        session = replace(session, batches={**session.batches, "test": test})
        dense, metric = Comparison(session).dense, session.task.main_metric
        score = dense.metrics[metric]
        near = bool(score <= constant_score(session.task, dense) + NEAR_CHANCE)
        blank = Row(
            suite=DEEP,
            setting=name,
            draw=draw,
            method=DENSE,
            metric=metric,
            score=score,
            dense_score=score,
            chance=near,
        )
        return cls(settings, session, blank)

    def dense_rows(self, figures: dict[str, Any]) -> Iterator[Row]:
        """Gives the rows of the dense network, as it is and trained further.

        Args:
            figures: Those of its training.
        """
        rows = self.session.batches["calibration"]  # of the training split, too: what they have of tokens, all have
        tokens = sum(batch.tokens for batch in rows) / sum(batch.examples for batch in rows)
        row = replace(self.blank, seconds=figures["seconds"], tokens=round(figures["rows"] * tokens))
        yield from self._measured(cut(self.session.dense, {}, "per_layer"), row)

    def pruned_rows(self, method: Method) -> Iterator[Row]:
        """Gives the rows of one method: each fraction, as it was cut and trained further."""
        settings = self.settings(method.search)
        session, sizes = under(self.session, settings), settings.prune.sizes()
        plans = [make_plans(session.dense, session.arms, session.totals, size).search for size in sizes]
        found, cost = search(session, plans)
        row = replace(self.blank, method=method.name, reward=method.reward)
        row = replace(row, pulls=cost.pulls, tokens=round(cost.forward_tokens), seconds=cost.seconds)
        for size, plan in zip(sizes, plans, strict=True):
            selection = Selection.along(plan, found.order, 1, settings.prune.min_neurons)
            small = cut(session.dense, session.arms.kept_units(selection.kept), "per_layer")
            yield from self._measured(small, replace(row, fraction=size.target.fractions()["neurons"]))

    def _measured(self, small: PreTrainedModel, row: Row) -> Iterator[Row]:
        """Measures a network, trains it further and measures it again."""
        session = self.session
        yield self._filled(small, row)
        training, recovery = session.training, session.settings.recovery
        assert training is not None and recovery is not None, "the settings of a setting have both"
        seed = session.settings.seed  # all see the same rows in the same order
        recover(small, session.dense, session.task, training, recovery, session.accelerator, seed)
        yield self._filled(small, replace(row, tuned=True))

    def _filled(self, small: PreTrainedModel, row: Row) -> Row:
        tested = Comparison(self.session).measured(forward_of(small, self.session.task), "test", intervals=False)
        return replace(row, score=tested.metrics[row.metric], loss=tested.loss, kl=float(tested.kl.mean()))


def constant_score(task: Task, dense: Evaluation) -> float:
    """Gives the score of the best answer that is the same for every example: the share of the most frequent class, or
    no correlation at all.

    Args:
        task: Task of the network.
        dense: What the network reaches; what is right is read.
    """
    if not task.predicts_classes:
        return 0.0
    _, counts = np.unique(dense.scores.reference, return_counts=True)
    return float(counts.max() / counts.sum())
