"""What a target of bytes, memory or time came to."""

from transformers import PreTrainedModel

from hf_mabprune.config import TargetConfig
from hf_mabprune.evaluation.figures import TargetFigures
from hf_mabprune.quantities import achieved, conditions
from hf_mabprune.selection.selected import Selection
from hf_mabprune.session import Session


def target_figures(
    session: Session, target: TargetConfig, selection: Selection, small: PreTrainedModel
) -> TargetFigures | None:
    """Measures a pruned model beside what was asked and predicted; None for targets that other figures show.

    Args:
        session: Dense model.
        target: Of this size.
        selection: Arms that stay.
        small: The pruned model.
    """
    budget = selection.plan.budgets[0]
    if not budget.unit:
        return None
    return TargetFigures(
        of=conditions(target),
        unit=budget.unit,
        before=budget.total,
        asked=budget.total + budget.added - budget.amount,
        predicted=selection.plan.left(budget, selection.kept),
        achieved=achieved(target, budget.total, session.dense, small, session.save_dtype, session.at_hand),
    )
