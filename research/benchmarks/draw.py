"""One draw of calibration data: what each method keeps by it, and what compensations learn from it."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import cast

import numpy as np
from transformers import PreTrainedModel

from hf_mabprune.architectures.cost import arm_table
from hf_mabprune.arms import ArmTable, Ints, KeepIndices
from hf_mabprune.compensation import CompensationFigures, compensate
from hf_mabprune.config import PruningConfig
from hf_mabprune.criteria import CalibrationStatistics
from hf_mabprune.effects.pulls.cost import Cost
from hf_mabprune.effects.pulls.replay import ReplayPulls
from hf_mabprune.progress import stage
from hf_mabprune.search.run import search
from hf_mabprune.selection.layouts import make_plans, width_multiple
from hf_mabprune.selection.plan import Plan
from hf_mabprune.selection.selected import Selection
from hf_mabprune.session import Session
from hf_mabprune.surgery.cut import cut
from research.benchmarks.controls import CONTROLS
from research.benchmarks.meter import Meter
from research.benchmarks.peers import Peer
from research.benchmarks.sessions import under
from research.benchmarks.specs import EQUAL, Allocation
from research.benchmarks.suite import Cell, Suite


@dataclass(frozen=True)
class Choice:
    """What a method keeps, and what it spent on that; several sizes of one search share all of the cost.

    Attributes:
        keep: Units that stay.
        parameters: Parameters of the smaller model, before a compensation adds biases.
        cost: Price of the choice; a criterion makes no pulls.
    """

    keep: KeepIndices
    parameters: int
    cost: Cost


@dataclass
class Draw:
    """Lets methods choose what stays by one draw of calibration data, and compensations refit it.

    Attributes:
        suite: What is compared.
        name: Name of the run whose model and task these are.
        session: Model, arms of both kinds, and the calibration data that were drawn.
        seed: Seed of the draw, of policies and of controls.
    """

    suite: Suite
    name: str
    session: Session
    seed: int
    _meters: dict[tuple[str, ...], Meter] = field(default_factory=dict, init=False, repr=False)  # by kinds of arms

    def choose(self, cells: Sequence[Cell]) -> dict[tuple[str, Allocation], Choice]:
        """Maps targets and allocations to what is kept.

        Args:
            cells: Cells that share the choice, see `Cell.choice`.
        """
        spec = self.suite.methods[cells[0].method]
        if spec.policy is not None:
            return self._by_search(cells)
        choose = self._by_control if spec.control else self._by_peer if spec.peer else self._by_criterion
        wanted = {(cell.target, cell.allocation): cell for cell in cells}
        return {place: choose(cell) for place, cell in wanted.items()}

    @stage("refit")
    def refit(self, small: PreTrainedModel, keep: KeepIndices, compensation: str) -> CompensationFigures | None:
        """Refits a cut model, in place, by the compensation of that label; None where it is none."""
        method = self.suite.compensation(compensation)
        return compensate(method, self.session.reference, small, keep) if method else None

    @stage("statistics")
    def _by_criterion(self, cell: Cell) -> Choice:
        prune, criterion = self.suite.settings(self.name, target=cell.size).prune, self.suite.criterion(cell.method)
        everything = self.session.arms
        arms = everything if criterion.ranks(everything.kinds()) else self._arms(prune)
        meter, plan = self._meter(arms), self._plan(prune, cell.allocation, arms)
        meter.start()
        kept, order = criterion.choose(cast(CalibrationStatistics, meter), plan)
        forward, backward = (self._tokens * passes for passes in meter.passes())
        cost = Cost(0, forward, backward, meter.stop())
        return self._choice(Selection(plan, kept, *self._rounding(prune)), order, cost)

    def _by_control(self, cell: Cell) -> Choice:
        spec, session = self.suite.methods[cell.method], self.session
        prune = self.suite.settings(self.name, target=cell.size).prune
        plan, batches = self._plan(prune, cell.allocation, session.arms), session.batches["calibration"]
        model = session.dense, session.arms, session.task
        pulls = ReplayPulls(*model, batches, "kl", session.accelerator, outputs=session.outputs)
        started, tokens = time.monotonic(), round(spec.sweeps * len(plan.arms) * (self._tokens / len(batches)))
        kept = CONTROLS[spec.control or ""](pulls, plan, tokens, self.seed)
        cost = Cost(0, pulls.cost.forward_tokens, 0, time.monotonic() - started)
        order = np.argsort(kept, kind="stable")  # what goes comes first
        return self._choice(Selection(plan, kept, *self._rounding(prune)), order, cost)

    @stage("statistics")
    def _by_peer(self, cell: Cell) -> Choice:
        peer, session = cast(Peer, self.suite.methods[cell.method].make_peer()), self.session
        started = time.monotonic()
        keep = peer.keep(session.dense, session.task, session.batches["calibration"], cell.size.fractions())
        seconds = time.monotonic() - started
        forward, backward = (self._tokens * passes for passes in peer.passes())
        parameters = cut(session.dense, keep, "per_layer").num_parameters()
        return Choice(keep, parameters, Cost(0, forward, backward, seconds))

    def _by_search(self, cells: Sequence[Cell]) -> dict[tuple[str, Allocation], Choice]:
        settings = cells[0].settings(self.suite).model_copy(update={"seed": self.seed})
        prune, session = settings.prune, self.session
        arms = self._arms(prune)
        compensation = self.suite.compensation(cells[0].compensation)
        session = under(session, settings, arms=arms, compensation=compensation)
        plans = {
            size.target.name(): make_plans(session.dense, arms, session.totals, size).search for size in prune.sizes()
        }
        result, cost = search(session, list(plans.values()))
        order, rounding = result.order, self._rounding(prune)
        selections = {
            (cell.target, cell.allocation): Selection.along(
                spread(plans[cell.target], cell.allocation), order, *rounding
            )
            for cell in cells
        }
        return {place: self._choice(selection, order, cost) for place, selection in selections.items()}

    def _arms(self, prune: PruningConfig) -> ArmTable:
        """Arms of those kinds alone that a target can remove."""
        session = self.session
        return arm_table(session.dense, prune.kinds(), session.settings.block_size, session.example)

    def _plan(self, prune: PruningConfig, allocation: Allocation, arms: ArmTable) -> Plan:
        """What has to go, of these arms."""
        return spread(make_plans(self.session.dense, arms, self.session.totals, prune).search, allocation)

    def _rounding(self, prune: PruningConfig) -> tuple[int, int]:
        """Multiple that kept widths are rounded to, and the neurons that a layer keeps at least."""
        return width_multiple(prune, self.session.dense.config), prune.min_neurons

    def _choice(self, selection: Selection, order: Ints, cost: Cost) -> Choice:
        arms, kept = selection.plan.arms, selection.rounded(order).kept
        parameters = self.session.totals["parameters"] - int(arms.parameters[~kept].sum())
        return Choice(arms.kept_units(kept), parameters, cost)

    @property
    def _tokens(self) -> int:
        """Positions of one pass over the calibration data, padding included."""
        return sum(batch.tokens for batch in self.session.batches["calibration"])

    def _meter(self, arms: ArmTable) -> Meter:
        """Statistics for all criteria that rank these arms."""
        session, kinds = self.session, tuple(arms.kinds())
        if kinds not in self._meters:
            data = session.dense, arms, session.task, session.batches["calibration"]
            self._meters[kinds] = Meter(CalibrationStatistics(*data, self.seed))
        return self._meters[kinds]


def spread(plan: Plan, allocation: Allocation) -> Plan:
    """Gives the plan by which a method's order is followed over all layers, or evenly in each; of the same size."""
    return replace(plan, even=allocation == EQUAL)
