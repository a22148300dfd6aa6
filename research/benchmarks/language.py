"""One language model, method beside method, at equal parameters without embeddings; one row a cell, resumable.

Each method spends the parameters that go as it likes: on heads or neurons, on one layer or another. What ranks arms is
followed over all layers and evenly, and the allocation with the lower KL divergence on the validation split counts;
the other one is not measured on test texts. All of these are refitted by least squares alike. Rivals allocate
themselves, and are measured with their own compensation and with least squares. A recovery that the settings name
trains every one of them, on the same data.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby, product
from pathlib import Path
from typing import cast

import numpy as np
from datasets import load_dataset
from transformers import PreTrainedModel

from hf_mabprune.architectures import architecture_of, projection_of
from hf_mabprune.arms import KeepIndices
from hf_mabprune.checks import check_choice
from hf_mabprune.compensation import RefitCache, compensate, refit_all
from hf_mabprune.config import PruneConfig, PruningConfig, TaskConfig, check
from hf_mabprune.criteria import CRITERIA, CalibrationStatistics
from hf_mabprune.data.corpus import LOADERS
from hf_mabprune.effects.masking import keep_masks, masked
from hf_mabprune.effects.pulls.cost import Cost
from hf_mabprune.evaluation.comparison import Comparison
from hf_mabprune.evaluation.quality import Evaluation, forward_of
from hf_mabprune.progress import stage
from hf_mabprune.recovery.recover import recover
from hf_mabprune.registry import nearest
from hf_mabprune.runtime.accelerator import make_accelerator
from hf_mabprune.search.run import make_criterion, search
from hf_mabprune.selection.layouts import make_plans, width_multiple
from hf_mabprune.selection.plan import Plan
from hf_mabprune.selection.selected import Selection
from hf_mabprune.session import Session, open_session
from hf_mabprune.surgery.cut import cut
from hf_mabprune.tasks.base import Task
from hf_mabprune.tasks.batch import Batch
from hf_mabprune.tasks.causal_lm import CausalLM
from hf_mabprune.tasks.sampling import evaluation_batches
from research.benchmarks.draw import spread
from research.benchmarks.endings import Question, answered, read_questions
from research.benchmarks.language_rows import Cell, Measured, Rows, in_short
from research.benchmarks.meter import Meter
from research.benchmarks.only import matching
from research.benchmarks.rivals import RIVALS, Chosen, non_embedding_parameters, removed_parameters
from research.benchmarks.specs import EQUAL, OWN
from research.benchmarks.suite import digest

RACE = "race"
ALONE = ("random", "magnitude", "wanda_sp", "flap", "obs", "kfac_obs")
METHODS = (*ALONE, RACE, *RIVALS)
REFIT = "least_squares"
QUICK = {"guard": False, "bottom_up": False, "both_sides": False}
ITS_OWN = "its own"  # the compensation that a rival comes with, if any


def run(
    settings: PruneConfig,
    out: str | Path,
    methods: Sequence[str] = METHODS,
    texts: Sequence[str] = (),
    choices: Sequence[str] = (),
    questions: int = 200,
    only: Sequence[str] = (),
) -> None:
    """Measures every cell that the file does not hold, and writes its row at once.

    Args:
        settings: A run of `mabprune prune` with a target of layer parameters.
        out: JSON-lines file of the rows.
        methods: Some of `METHODS`, or other criteria, which may be of other arms, such as layers.
        texts: Further test texts, NAME=FILE each.
        choices: Files of questions, NAME=FILE each, see `endings.read_questions`.
        questions: Number that is drawn of each.
        only: Filters of cells, see `matching`.

    Raises:
        ValueError, OSError: For settings, methods, a model or data that cannot work.
    """
    files, asked = dict(named(text) for text in texts), dict(named(choice) for choice in choices)
    check_choice(settings := comparable(settings))
    cells = matching(cells_of(settings, methods), only, Cell._fields)
    rows = Rows(out, digest([settings.model_dump(exclude={"output"}), files, asked, questions]))
    todo = [cell for cell in cells if cell not in rows.there()]
    accelerator = make_accelerator()
    accelerator.print(f"{len(todo)} of {len(cells)} cells to measure; rows go to {rows.path}")
    if not todo:
        return
    quizzes = {name: read_questions(file, questions, settings.seed) for name, file in asked.items()}
    bench = Bench(with_texts(open_session(settings, accelerator), files), ("test", *files), quizzes)
    with stage("benchmark", len(todo), "cells") as work:
        for method, group in groupby(todo, key=lambda cell: cell.method):
            for cell, chosen in bench.choices(method, list(group)):
                row = bench.row(cell, chosen, rows.lowest(cell))
                rows.add(row)
                work.count(work.done + 1)
                accelerator.print(f"{' '.join(map(str, cell))}: {in_short(row)}", flush=True)


def comparable(settings: PruneConfig) -> PruneConfig:
    """Gives the settings with the layout and the compensation that all methods are compared with.

    Least squares goes with the options that the settings state; without them it is the quick one, to the dense
    model's activations and without a guard.

    Raises:
        ValueError: If the target is no layer parameters.
    """
    if settings.prune.target.layer_parameters is None:
        raise ValueError("methods are compared at equal prune.target.layer_parameters, e.g. [0.1, 0.2, 0.3]")
    dumped = settings.model_dump()
    dumped["prune"]["layout"] = "per_layer"
    stated = dumped["compensation"] if isinstance(dumped["compensation"], dict) else {}
    return check({**dumped, "compensation": {**QUICK, **stated, "name": REFIT}})


def cells_of(settings: PruneConfig, methods: Sequence[str]) -> list[Cell]:
    """Lists all cells, those of a method one after the other.

    Raises:
        ValueError: For an unknown method.
    """
    cells, known = [], dict.fromkeys([*METHODS, *CRITERIA.names()])
    for method in methods:
        if method not in known:
            raise ValueError(f"no method '{method}'.{nearest(method, known)} Known: {', '.join(known)}")
        rival = method in RIVALS
        ways = product([OWN], [ITS_OWN, REFIT]) if rival else product([OWN, EQUAL], [REFIT])
        sizes = [fraction_of(size) for size in settings.prune.sizes()]
        cells += [Cell(method, size, *way) for size, way in product(sizes, list(ways))]
    return cells


def fraction_of(size: PruningConfig) -> float:
    """Gives the part of the layer parameters that goes at a size."""
    return float(cast(float, size.target.layer_parameters))


def named(text: str) -> tuple[str, str]:
    """Reads NAME=FILE.

    Raises:
        ValueError: If it is not that, or the file is of no kind that can be read.
        FileNotFoundError: If there is no such file.
    """
    name, equals, file = text.partition("=")
    if not (name and equals) or Path(file).suffix not in LOADERS:
        raise ValueError(f"write NAME=FILE, the file being one of {', '.join(LOADERS)}, got {text!r}")
    if not Path(file).is_file():
        raise FileNotFoundError(f"no file {file!r}")
    return name, file


def with_texts(session: Session, files: Mapping[str, str]) -> Session:
    """Gives the session with further splits, each of the windows of a file."""
    settings, batches = session.settings, dict(session.batches)
    for name, file in files.items():
        batches[name] = windows(settings.task, session.task, name, file, settings.seed)
    return replace(session, batches=batches)


def windows(settings: TaskConfig, task: Task, name: str, file: str, seed: int) -> Sequence[Batch]:
    """Draws windows of a file's text, as those of a test split are drawn."""
    dataset = load_dataset(LOADERS[Path(file).suffix], data_files=file, split="train")
    task.check(dataset, name)
    return evaluation_batches(settings, task, dataset, seed)


@dataclass(frozen=True)
class Bench:
    """Measures cells on one model.

    Attributes:
        session: Model and data, with a split for each text.
        texts: Splits that are reported.
        quizzes: Questions by the name of their file.
    """

    session: Session
    texts: Sequence[str]
    quizzes: Mapping[str, Sequence[Question]]

    def choices(self, method: str, cells: Sequence[Cell]) -> Iterator[tuple[Cell, Chosen]]:
        """Gives what a method keeps at its cells; one search serves all sizes, one choice all compensations."""
        if method in RIVALS:
            for size, group in groupby(cells, key=lambda cell: cell.size):
                if chosen := self._by_rival(method, size):
                    yield from ((cell, chosen) for cell in group)
        elif method == RACE:
            yield from self._by_search(cells)
        else:
            yield from ((cell, self._by_criterion(cell)) for cell in cells)

    def row(self, cell: Cell, chosen: Chosen, lowest: float) -> Measured:
        """Measures a cell; on test texts only where no other allocation has a lower KL on the validation split.

        Args:
            cell: What is measured.
            chosen: What its method keeps.
            lowest: KL divergence on the validation split of other allocations.
        """
        session, texts, quizzes = self.session, {}, {}
        with smaller(session, chosen, cell.compensation) as small:
            forward = forward_of(small, session.task)
            validation = self._comparison.measured(forward, "validation", intervals=False)
            held_out = float(validation.kl.mean())
            if not held_out >= lowest:
                found = {name: self._comparison.measured(forward, name, intervals=False) for name in self.texts}
                texts = {name: figures(each, self.dense[name]) for name, each in found.items()}
                pairs = zip(self.answers(small).items(), self.dense_answers.values(), strict=True)
                quizzes = {name: {"right": right, "dense_right": dense} for (name, right), dense in pairs}
        sites = architecture_of(session.dense).sites(session.dense)
        return {
            **cell._asdict(),
            "gone": removed_parameters(session.dense, chosen.keep) / self.layer_parameters,
            "validation_kl": held_out,
            "texts": texts,
            "quizzes": quizzes,
            "widths": {site.name: len(chosen.keep.get(site.name, range(site.units))) for site in sites},
            "pulls": chosen.cost.pulls,
            "forward_tokens": round(chosen.cost.forward_tokens),
            "backward_tokens": round(chosen.cost.backward_tokens),
            "seconds": chosen.cost.seconds,
        }

    @property
    def layer_parameters(self) -> int:
        """Counts the parameters that targets are fractions of."""
        return self.session.totals["ffn_parameters"] + self.session.totals["attention_parameters"]

    @cached_property
    def dense(self) -> dict[str, Evaluation]:
        """The dense model on each text."""
        session = self.session

        def measured(split: str) -> Evaluation:
            said = lambda number, batch: session.dense_on(split, number, batch)  # noqa: E731
            return self._comparison.measured(said, split, beside_dense=False, intervals=False)

        return {name: measured(name) for name in self.texts}

    @cached_property
    def dense_answers(self) -> dict[str, list[bool]]:
        """Which questions the dense model answers right."""
        return self.answers(self.session.dense)

    def answers(self, model: PreTrainedModel) -> dict[str, list[bool]]:
        """Tells which questions a model answers right."""
        task, size = cast(CausalLM, self.session.task), self.session.settings.task.batch_size
        return {name: answered(model, task, quiz, task.length, size).tolist() for name, quiz in self.quizzes.items()}

    @cached_property
    def _comparison(self) -> Comparison:
        return Comparison(self.session)

    @cached_property
    def _sizes(self) -> dict[float, PruningConfig]:
        return {fraction_of(size): size for size in self.session.settings.prune.sizes()}

    @cached_property
    def _meter(self) -> Meter:
        """Statistics for all criteria."""
        session = self.session
        data = session.dense, session.arms, session.task, session.batches["calibration"]
        return Meter(CalibrationStatistics(*data, session.settings.seed, session.reserve))

    @property
    def _tokens(self) -> int:
        """Positions of one pass over the calibration data."""
        return sum(batch.tokens for batch in self.session.batches["calibration"])

    def _plan(self, size: PruningConfig) -> Plan:
        session = self.session
        return make_plans(session.dense, session.arms, session.totals, size).search

    def _rounding(self, size: PruningConfig) -> tuple[int, int]:
        return width_multiple(size, self.session.dense.config), size.min_neurons

    @stage("statistics")
    def _by_criterion(self, cell: Cell) -> Chosen:
        size = self._sizes[cell.size]
        plan = spread(self._plan(size), cell.allocation)
        self._meter.start()
        kept, order = make_criterion(cell.method).choose(cast(CalibrationStatistics, self._meter), plan)
        forward, backward = (self._tokens * passes for passes in self._meter.passes())
        selection = Selection(plan, kept, *self._rounding(size)).rounded(order)
        cost = Cost(0, forward, backward, self._meter.stop())
        return Chosen(self.session.arms.kept_units(selection.kept), cost=cost)

    def _by_search(self, cells: Sequence[Cell]) -> Iterator[tuple[Cell, Chosen]]:
        session = self.session
        plans = {size: self._plan(config) for size, config in self._sizes.items()}
        result, cost = search(session, list(plans.values()))
        for cell in cells:
            rounding = self._rounding(self._sizes[cell.size])
            selection = Selection.along(spread(plans[cell.size], cell.allocation), result.order, *rounding)
            yield cell, Chosen(session.arms.kept_units(selection.kept), cost=cost)

    @stage("statistics")
    def _by_rival(self, method: str, size: float) -> Chosen | None:
        """Lets a rival choose; nothing, and a line that says why, where the size is out of its reach."""
        session, started = self.session, time.monotonic()
        fraction = size * self.layer_parameters / non_embedding_parameters(session.dense)
        try:
            chosen = RIVALS[method](session.dense, session.task, session.batches["calibration"], fraction)
        except ValueError as reason:
            session.accelerator.print(f"{method} {size} is left out: {reason}")
            return None
        return replace(chosen, cost=replace(chosen.cost, seconds=time.monotonic() - started))


@contextmanager
def smaller(session: Session, chosen: Chosen, compensation: str) -> Iterator[PreTrainedModel]:
    """Gives the model that is left, refitted, and recovered where the settings say so.

    Blocks that go as a whole stay there, masked: no cut takes them.
    """
    dense = session.dense
    there: KeepIndices = {name: units for name, units in chosen.keep.items() if len(units)}
    small = cut(dense, there, "per_layer")
    if compensation == ITS_OWN:
        for site in architecture_of(small).sites(small):
            if site.name in there and site.name in chosen.weights:
                projection_of(small, site).write(chosen.weights[site.name])
    gone = {name: np.empty(0, dtype=np.int64) for name in chosen.keep.keys() - there.keys()}
    with masked(small, masks=keep_masks(small, gone)):
        if compensation == REFIT and (method := session.compensation):
            plain = not (method.guard or method.bottom_up)
            given = method, session.reference, small, there
            refit_all(*given, RefitCache(session.reserve)) if plain else compensate(*given)
        if session.settings.recovery and session.training is not None:
            training = session.dense, session.task, session.training, session.settings.recovery
            recover(small, *training, session.accelerator, session.settings.seed)
        yield small


def figures(small: Evaluation, dense: Evaluation) -> Measured:
    """Gives what is reported of a text, and what it is made from, window by window."""
    return {
        "kl": float(small.kl.mean()),
        "perplexity": float(np.exp(small.loss)),
        "dense_perplexity": float(np.exp(dense.loss)),
        "window_kl": small.kl.tolist(),
        "window_loss": small.scores.losses.tolist(),
        "window_positions": small.scores.positions.tolist(),
    }
