"""The promise of a run: the smallest of some sizes that loses no more than was said, with high confidence.

Sizes are tested from the largest model to the smallest, an order that is fixed before anything is looked at, each at
the whole level, until one fails: fixed sequence testing. A size that loses more is so taken with no more than the
probability that one test errs, however many sizes there are: the first size in the order that does must have been let
pass. What is tested is the very model that is saved, on the certification split, which nothing else reads.

Source: Angelopoulos, Bates, Candes, Jordan & Lei 2021, Learn then Test, section 2 (fixed sequence).
Symbols: n examples of the split.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from transformers import PreTrainedModel

from hf_mabprune.compensation import CompensationFigures
from hf_mabprune.config import PromiseConfig, PruningConfig
from hf_mabprune.evaluation.bounds import Bools, Floats, is_below, least_examples, upper_share
from hf_mabprune.evaluation.comparison import Comparison
from hf_mabprune.evaluation.figures import PromiseFigures
from hf_mabprune.evaluation.quality import Evaluation, changed_shares
from hf_mabprune.progress import stage
from hf_mabprune.recovery.recover import RecoveryFigures
from hf_mabprune.selection.selected import Selection

SPLIT = "certification"


@dataclass(frozen=True)
class Made:
    """One size as a model, before it is reported on.

    Attributes:
        prune: Settings with the one target of this size.
        selection: Arms that stay.
        model: The smaller model, with the weights that will be saved.
        refitted: What its compensation did.
        trained: What its recovery did.
        promise: What it does not lose, as far as that was tested.
    """

    prune: PruningConfig
    selection: Selection
    model: PreTrainedModel
    refitted: CompensationFigures | None
    trained: RecoveryFigures | None
    promise: PromiseFigures | None = None


@dataclass(frozen=True)
class Scale:
    """How what an example loses becomes a number in [0, 1]: (lost - low) / (high - low)."""

    low: float
    high: float

    def to(self, lost: Floats | float) -> Floats:
        """Gives the number of a loss, or of each."""
        return np.asarray((np.asarray(lost) - self.low) / (self.high - self.low))


def scale_of(promise: PromiseConfig) -> Scale:
    """Gives the range of what an example may lose: an answer, nats up to the clip, or a right answer, or win one."""
    return {"changed": Scale(0, 1), "kl": Scale(0, promise.clip), "metric": Scale(-1, 1)}[promise.of]


def check_promise(comparison: Comparison, promise: PromiseConfig) -> None:
    """Refuses, before the search, what the certification split cannot say.

    Args:
        comparison: Dense model, on the test split.
        promise: What a size must not lose.

    Raises:
        ValueError: If there is no such split, it is too small, or the task's answers or metric are not of that kind.
    """
    session, name = comparison.session, f"prune.promise.{promise.of}"
    if SPLIT not in session.batches:
        raise ValueError(f"{name} is tested on a split that nothing else reads: name it, task.splits.{SPLIT}")
    task, dense = session.task, comparison.dense.scores
    answers = task.predicts_classes and task.keeps_predictions and bool(dense.answers.any())
    one_each = answers and bool((dense.answers == 1).all())
    if promise.of == "changed" and not answers:
        raise ValueError(f"{name} is for tasks that answer with classes: set prune.promise.kl instead")
    if promise.of == "metric" and not (one_each and task.main_metric == "accuracy"):
        raise ValueError(
            f"{name} is for the accuracy of one answer an example, which is a mean over examples, got "
            f"{task.main_metric}: set prune.promise.changed or kl instead"
        )
    count = sum(batch.examples for batch in session.batches[SPLIT])
    least = least_for(promise, exact=promise.of == "changed" and one_each)
    if count < least:
        raise ValueError(
            f"{name} {promise.most:g} at {promise.confidence:.0%} takes {least:,} {SPLIT} examples, even where "
            f"nothing is lost on any of them, got {count:,}: widen task.splits.{SPLIT}, or promise less"
        )


def least_for(promise: PromiseConfig, exact: bool) -> int:
    """Counts the examples that a promise takes even where nothing is lost on any of them; `exact` as for `holds`."""
    scale = scale_of(promise)
    return least_examples(float(scale.to(promise.most)), float(scale.to(0.0)), promise.confidence, exact)


def smallest_that_holds(comparison: Comparison, made: Iterable[Made], promise: PromiseConfig) -> Made:
    """Tests sizes from the largest to the smallest, and takes the last one before the first that fails.

    Raises:
        ValueError: If the largest fails already.
    """
    taken: Made | None = None
    tests: PromiseFigures | None = None
    for each in made:
        tests = tested(comparison, each.model, promise, each.prune.target.name(), tests)
        if not tests.tests[-1][-1]:
            break
        taken = each
    if taken is None:
        raise ValueError(f"no size keeps prune.promise, so nothing is written: {tests}; ask for a larger one first")
    return replace(taken, promise=tests)


@stage("certification")
def tested(
    comparison: Comparison, model: PreTrainedModel, promise: PromiseConfig, name: str, earlier: PromiseFigures | None
) -> PromiseFigures:
    """Tests the next size in the order, on the certification split.

    Args:
        comparison: Dense model, and how others are compared with it.
        model: Pruned model, with the weights that will be saved.
        promise: What it must not lose.
        name: Of the size.
        earlier: Of the sizes before it.

    Returns:
        The tests so far, this one the last.
    """
    small, dense = comparison.on_certification(model)
    lost, exact = losses_of(promise, small, dense)
    held = bool(holds(promise, lost, exact))
    tests = [*(earlier.tests if earlier else []), (name, float(lost.mean()), held)]
    return PromiseFigures(promise.of, promise.most, promise.clip, promise.confidence, len(lost), tests)


def losses_of(promise: PromiseConfig, small: Evaluation, dense: Evaluation) -> tuple[Floats, bool]:
    """Gives what each example loses, [n], and whether that is always an answer or none."""
    scores = small.scores
    if promise.of == "kl":
        return np.nan_to_num(small.kl, nan=promise.clip).clip(0, promise.clip), False
    if promise.of == "metric":
        return dense.scores.correct - scores.correct, False
    shares = changed_shares(scores, dense.scores)
    return shares[~np.isnan(shares)], bool((scores.answers == 1).all())


def holds(promise: PromiseConfig, lost: Floats, exact: bool) -> Bools:
    """Says whether no more is lost than promised, with the confidence that is asked for: exact for answers, by a bet
    for all else.

    A bet takes the examples one after the other, in an order that says nothing of what they lose: at random.

    Args:
        promise: What must not be lost.
        lost: What each example loses, [..., n].
        exact: Whether that is always an answer or none.

    Returns:
        [...], whether the promise holds.
    """
    if exact:
        return upper_share(lost.sum(-1).round(), lost.shape[-1], promise.confidence) <= promise.most
    scale = scale_of(promise)
    mixed = np.random.default_rng(0).permutation(lost.shape[-1])  # for splits are measured from the shortest on
    return is_below(scale.to(lost[..., mixed]), float(scale.to(promise.most)), promise.confidence)
