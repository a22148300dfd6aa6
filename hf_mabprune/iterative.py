"""Pruning with training between rounds: each stage cuts a part of the target out for good, refits and trains what is
left, and the next one searches the smaller model.

What a stage finds is about its own arms, those that the stages before it have left; `rows` says which of the dense
model's they are, and so all stages together read as one search of the dense model.
Symbols: K arms of the dense model, k of a stage.
"""

from dataclasses import asdict, dataclass, field, replace

import numpy as np

from hf_mabprune.architectures import architecture_of
from hf_mabprune.compensation import CompensationFigures
from hf_mabprune.config import PruneConfig, RecoveryConfig
from hf_mabprune.effects.pulls.base import Cost
from hf_mabprune.evaluation.comparison import Selection, Session
from hf_mabprune.recovery.recover import RecoveryFigures, recover
from hf_mabprune.search.loop import Bools, Ints, SearchResult
from hf_mabprune.selection.layouts import width_multiple
from hf_mabprune.selection.plan import Plan
from hf_mabprune.tasks.readout import ReadoutCache


@dataclass(frozen=True)
class Stage:
    """Where a pruning in stages is.

    Attributes:
        whole: Of the dense model, which teaches every training.
        session: Of the model as it is now, which the next search and refit start from.
        plan: Of the whole target, over the arms of the dense model.
        rows: [k], which of those arms are left.
        found: Of the dense model's arms; the order has the removed ones alone.
        cost: Of all searches.
        number: Stages behind it.
        done, trained: What the last compensation and training did, and what all of them cost.
    """

    whole: Session
    session: Session
    plan: Plan
    rows: Ints
    found: SearchResult
    cost: Cost = field(default_factory=Cost)
    number: int = 0
    done: CompensationFigures | None = None
    trained: RecoveryFigures | None = None

    @classmethod
    def first(cls, session: Session, plan: Plan) -> "Stage":
        """With the whole model."""
        count = len(session.arms)
        return cls(session, session, plan, np.arange(count), SearchResult.of_all(count))

    def next_plan(self, progress: float) -> Plan:
        """What has to go from the model as it is now, until `progress` of the whole target is reached."""
        return self.plan.restricted(self.session.arms, self.rows, progress)

    def cut(self, settings: PruneConfig, plan: Plan, found: SearchResult, cost: Cost) -> "Stage":
        """The model without what a search found, refitted and trained.

        Args:
            settings: Of the run; the stages share the training.
            plan: That the search followed, from `next_plan`.
            found: Finished, of this stage's arms.
        """
        assert settings.recovery is not None and self.whole.training is not None
        number, prune, whole = self.number + 1, settings.prune, self.whole
        multiple = width_multiple(prune, whole.model.config.hidden_size) if number == settings.stages else 1
        kept = Selection(plan, found.kept, multiple, prune.min_neurons).rounded(found.order).kept
        small, done = self.session.cut(Selection(plan, kept, multiple, prune.min_neurons))
        trained = recover(
            small, whole.model, whole.task, whole.training, share(settings.recovery), whole.accelerator,
            settings.seed + number - 1,
        )  # fmt: skip
        together = self._together(found, kept, number)
        if done:  # the biases that are there now: of those that came earlier, some have gone with their arms
            unbiased = whole.totals["parameters"] - int(whole.arms.parameters[~together.kept].sum())
            done = replace(done.after(self.done), parameters=small.num_parameters() - unbiased)
        arms = architecture_of(small).arm_table(small, prune.kinds(), prune.block_size, whole.tokens)
        return replace(
            self,
            session=replace(self.session, model=small, arms=arms, cache=ReadoutCache()),
            rows=self.rows[kept],
            found=together,
            cost=Cost(**{name: value + getattr(cost, name) for name, value in asdict(self.cost).items()}),
            number=number,
            done=done,
            trained=trained.after(self.trained),
        )

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


def share(recovery: RecoveryConfig) -> RecoveryConfig:
    """The training of one stage: each has the same part of the epochs and steps, and a schedule of its own."""
    steps = None if recovery.max_steps is None else max(1, recovery.max_steps // recovery.stages)
    return recovery.model_copy(update={"epochs": recovery.epochs / recovery.stages, "max_steps": steps})
