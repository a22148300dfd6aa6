"""Pruning with training between rounds: each stage cuts a part of the target out for good, refits and trains what is
left, and the next one searches the smaller model.

What a stage finds is about its own arms, those that the stages before it have left; `rows` says which of the dense
model's they are, and so all stages together read as one search of the dense model.
Symbols: K arms of the dense model, k of a stage.
"""

from dataclasses import dataclass, field, replace

import numpy as np
from transformers import PreTrainedModel

from hf_mabprune.architectures import architecture_of, projection_of
from hf_mabprune.architectures.cost import arm_table
from hf_mabprune.architectures.sites import members
from hf_mabprune.compensation import CompensationFigures
from hf_mabprune.config import PruningConfig, RecoveryConfig
from hf_mabprune.effects.dense_outputs import DenseOutputs
from hf_mabprune.effects.pulls.cost import Cost
from hf_mabprune.recovery.recover import RecoveryFigures, recover
from hf_mabprune.runtime.resume import RunState
from hf_mabprune.search.result import Bools, Ints, SearchResult
from hf_mabprune.search.run import search
from hf_mabprune.selection.layouts import width_multiple
from hf_mabprune.selection.plan import Plan
from hf_mabprune.selection.selected import Selection
from hf_mabprune.session import Session
from hf_mabprune.surgery.cut import cut


@dataclass(frozen=True)
class Stage:
    """Where a pruning in stages is.

    Attributes:
        dense: Session of the dense model, which teaches every training.
        session: Session of the model as it is now, which the next search and refit start from.
        plan: Plan of the whole target, over the arms of the dense model.
        rows: [k], which of those arms are left.
        found: What all searches found, over the dense model's arms; the order has the removed ones alone.
        cost: Of all searches.
        number: Stages behind it.
        refitted, trained: What the last compensation and training did, and what all of them cost.
    """

    dense: Session
    session: Session
    plan: Plan
    rows: Ints
    found: SearchResult
    cost: Cost = field(default_factory=Cost)
    number: int = 0
    refitted: CompensationFigures | None = None
    trained: RecoveryFigures | None = None

    @classmethod
    def first(cls, session: Session, plan: Plan) -> "Stage":
        """Begins with the dense model."""
        count = len(session.arms)
        return cls(session, session, plan, np.arange(count), SearchResult.of_all(count))

    def next_plan(self, progress: float) -> Plan:
        """Plans what has to go from the model as it is now, until `progress` of the whole target is reached."""
        return self.plan.restricted(self.session.arms, self.rows, progress)

    def cut(self, plan: Plan, found: SearchResult, cost: Cost, run: RunState) -> "Stage":
        """Gives the next stage: the model without what a search found, refitted and trained.

        Args:
            plan: Plan that the search followed, from `next_plan`.
            found: The finished search, of this stage's arms.
            cost: Of that search.
            run: Where the training is kept, and taken up from.
        """
        dense, settings = self.dense, self.dense.settings
        assert settings.recovery is not None and dense.training is not None
        number, prune = self.number + 1, settings.prune
        multiple = width_multiple(prune, dense.dense.config) if number == settings.stages else 1
        selection = Selection(plan, found.kept, multiple, prune.min_neurons).rounded(found.order)
        keep = self.session.arms.kept_units(selection.kept)
        small = cut(self.session.dense, keep, plan.layout)
        refitted = self.session.refit(small, keep)
        seed = settings.seed + number - 1
        trained = recover(
            small, dense.dense, dense.task, dense.training, share(settings.recovery), dense.accelerator,
            seed, run.training(small, seed),
        )  # fmt: skip
        left = _left(self.session, selection.kept)
        together = self._together(found, left, number)
        if refitted:  # the biases that are there now: of those that came earlier, some have gone with their arms
            refitted = replace(refitted.after(self.refitted), parameters=_new_biases(dense.dense, small))
        arms = arm_table(small, prune.kinds(), settings.block_size, dense.example)
        return replace(
            self,
            session=replace(self.session, dense=small, arms=arms, outputs=DenseOutputs(self.session.reserve)),
            rows=self.rows[left],
            found=together,
            cost=self.cost + cost,
            number=number,
            refitted=refitted,
            trained=trained.after(self.trained),
        )

    def selection(self, prune: PruningConfig) -> Selection:
        """Gives the arms that stay at the end, the only size there is.

        Raises:
            ValueError: For another target than the run's.
        """
        if prune.target != self.dense.settings.prune.target:
            raise ValueError(
                "a run in stages trained its model for one size; for others make new runs, or set recovery.stages to 1"
            )
        reason = "asked for" if prune.layout == self.plan.layout else "auto: after stages there is no other to try"
        return Selection(self.plan, self.found.kept, 1, prune.min_neurons, reason)

    @property
    def model(self) -> PreTrainedModel:
        """The model as it is now."""
        return self.session.dense

    def _together(self, found: SearchResult, kept: Bools, number: int) -> SearchResult:
        """This stage's search after all earlier ones."""
        earlier, rows, order = self.found, self.rows, found.order
        gone, stay = (rows[order[taken]] for taken in (~kept[order], kept[order]))
        result = replace(
            earlier,
            kept=np.isin(np.arange(len(earlier.kept)), stay),
            order=np.concatenate([earlier.order[: (~earlier.kept).sum()], gone, stay]),
            scores=earlier.scores.copy(),
            pulls=earlier.pulls.copy(),
            removed_round=earlier.removed_round.copy(),
            rounds=[*earlier.rounds, *(
                replace(
                    each,
                    number=len(earlier.rounds) + each.number,
                    removed=int((~earlier.kept).sum()) + each.removed,
                    pulls=self.cost.pulls + each.pulls,
                    seconds=self.cost.seconds + each.seconds,
                )
                for each in found.rounds
            )],
            broken=sorted({*earlier.broken, *found.broken}),
            stopped_because=f"stage {number}: {found.stopped_because}",
        )  # fmt: skip
        result.scores[rows], result.removed_round[gone] = found.scores, number
        result.pulls[rows] += found.pulls
        return result


def prune_in_stages(session: Session, plan: Plan, run: RunState) -> Stage:
    """Searches, cuts, refits and trains in turns, until the whole target is reached.

    Args:
        session: Session of the dense model.
        plan: Plan of the whole target.
        run: Where the searches are kept.
    """
    stage, stages = Stage.first(session, plan), session.settings.stages
    for number in range(1, stages + 1):
        session.accelerator.print(f"stage {number} of {stages}")
        plan = stage.next_plan(number / stages)
        stage = stage.cut(plan, *search(stage.session, [plan], run), run)
    return stage


def share(recovery: RecoveryConfig) -> RecoveryConfig:
    """The training of one stage: each has the same part of the epochs and steps, and a schedule of its own."""
    steps = None if recovery.max_steps is None else max(1, recovery.max_steps // recovery.stages)
    return recovery.model_copy(update={"epochs": recovery.epochs / recovery.stages, "max_steps": steps})


def _left(session: Session, kept: Bools) -> Bools:
    """[K], the arms that a cut model still has: those kept, but for the neurons of experts that went."""
    arms, left = session.arms, kept.copy()
    sites = architecture_of(session.dense).sites(session.dense)
    rows = dict(arms.groups())
    for router in (site for site in sites if site.kind == "expert" and site.name in rows):
        for part, arm in zip(members(router, sites), rows[router.name], strict=True):
            if not kept[arm] and part.name in rows:
                left[rows[part.name]] = False
    return left


def _new_biases(dense: PreTrainedModel, small: PreTrainedModel) -> int:
    """Counts the parameters of biases of output projections that the dense model does not have."""
    there = {site.name: site for site in architecture_of(dense).sites(dense)}
    return sum(
        bias.numel()
        for site in architecture_of(small).sites(small, empty=True)
        if (bias := projection_of(small, site).bias) is not None
        and projection_of(dense, there[site.name]).bias is None
    )
