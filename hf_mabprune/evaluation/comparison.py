"""The rows of the report: the dense model, the pruned one and random draws of the same size, on the same data."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property

import numpy as np
from accelerate import Accelerator
from datasets import Dataset
from transformers import PreTrainedModel

from hf_mabprune.arms import KINDS, ArmTable, Bools, Ints
from hf_mabprune.compensation import Compensation, CompensationFigures, DenseReference, compensate
from hf_mabprune.config import PruneConfig
from hf_mabprune.effects.pulls.base import Cost
from hf_mabprune.evaluation.bounds import upper_mean, upper_share
from hf_mabprune.evaluation.quality import (
    Evaluation,
    Forward,
    evaluate,
    forward_of,
    masked_forward_of,
    measure_latency,
)
from hf_mabprune.evaluation.report import ModelFigures, RandomFigures, Report, SearchFigures
from hf_mabprune.recovery.recover import RecoveryFigures
from hf_mabprune.search.loop import SearchResult
from hf_mabprune.selection.plan import Plan, round_widths
from hf_mabprune.surgery.cut import prune_copy
from hf_mabprune.tasks.base import Batch, Task, task_for_model
from hf_mabprune.tasks.readout import Readout, ReadoutCache


@dataclass(frozen=True)
class Selection:
    """Which arms stay, and by which plan.

    Attributes:
        kept: [K].
        reason: Why the plan's layout is what it is.
    """

    plan: Plan
    kept: Bools
    multiple: int
    min_neurons: int
    reason: str = ""

    @classmethod
    def along(cls, plan: Plan, order: Ints, multiple: int, min_neurons: int, reason: str = "") -> "Selection":
        """The selection that follows an order of removal, [K] first removed first, from the whole model on."""
        scores = np.empty(len(order))
        scores[order] = -np.arange(1, len(order) + 1, dtype=float)
        kept, _ = plan.choose(scores * plan.cost(), np.ones(len(order), dtype=bool))
        return cls(plan, kept, multiple, min_neurons, reason).rounded(order)

    def rounded(self, order: Ints) -> "Selection":
        """With kept FFN widths moved to the multiple; `uniform` plans step by it already."""
        if self.plan.layout == "uniform" or self.multiple == 1:
            return self
        return replace(self, kept=round_widths(self.plan.arms, order, self.kept, self.multiple, self.min_neurons))

    def random(self, seed: int) -> "Selection":
        """The same target, layout, floors and rounding, with arms drawn at random whatever they cost."""
        plan, rng = self.plan, np.random.default_rng(seed)
        scores = rng.random(len(plan.arms)) * plan.cost()
        kept, _ = plan.choose(scores, np.ones(len(scores), dtype=bool))
        return replace(self, kept=kept).rounded(np.argsort(-scores))


@dataclass(frozen=True)
class Session:
    """Measures models on the splits that the search never saw.

    Attributes:
        model: The dense model.
        batches: purpose -> batches.
        tokens: T, length of the sequence that MACs are counted for.
        training: Encoded examples of the calibration split for recovery, where the run asks for it.
        compensation: How pruned models are refitted, the random draws as well; None leaves them as they are.
        cache: What the dense model says, by split and number of the batch.
    """

    model: PreTrainedModel
    task: Task
    arms: ArmTable
    batches: Mapping[str, Sequence[Batch]]
    tokens: int
    totals: dict[str, int]
    accelerator: Accelerator
    compensation: Compensation | None = None
    training: Dataset | None = None
    cache: ReadoutCache = field(default_factory=ReadoutCache, repr=False)

    @cached_property
    def reference(self) -> DenseReference:
        """The dense model on calibration data, for the compensation of every selection."""
        return DenseReference.on(self.model, self.task, self.batches["calibration"])

    def cut(self, selection: "Selection") -> tuple[PreTrainedModel, CompensationFigures | None]:
        """The smaller model, refitted where the run asks for it."""
        keep = self.arms.kept_units(selection.kept)
        small = prune_copy(self.model, keep, selection.plan.layout)
        done = compensate(self.compensation, self.reference, small, keep) if self.compensation else None
        return small, done

    def masked(self, kept: Bools, split: str, intervals: bool = True) -> Evaluation:
        """The model with only `kept` arms, by masking."""
        forward = masked_forward_of(self.model, self.task, self.arms.kept_units(kept))
        original = self.originals(split)
        return evaluate(forward, self.task, self.batches[split], self.accelerator, original, intervals)

    def originals(self, split: str) -> Forward:
        """The dense model, from the cache where its logits fit."""

        def forward(number: int, batch: Batch) -> Readout:
            return self.cache.get((split, number), lambda: self.task.readout(self.model, batch))

        return forward

    @cached_property
    def baseline(self) -> Evaluation:
        """The dense model on the test split.

        Raises:
            ValueError: If its loss is not finite.
        """
        found = evaluate(self.originals("test"), self.task, self.batches["test"], self.accelerator)
        if broken := int((~np.isfinite(found.scores.losses)).sum()):
            raise ValueError(
                f"the dense model's loss on {broken:,} of {len(found.kl):,} test examples is not finite: "
                "look for broken examples or weights, or use dtype float32"
            )
        return found

    def before_and_after(
        self, small: PreTrainedModel, kept: Bools, biases: int
    ) -> tuple[ModelFigures, ModelFigures]:
        """The dense and the cut model on the test split, with latencies measured in turns.

        Args:
            biases: Parameters that the compensation added.
        """
        test, before = self.batches["test"], self.baseline
        after = self._tested(small)
        slow, fast = measure_latency([self.model, small], self.task, test[len(test) // 2])
        everything = np.ones(len(kept), dtype=bool)
        return (
            replace(self._figures(before, everything), latency_ms=slow),
            replace(self._figures(after, kept, biases), latency_ms=fast),
        )

    def random(self, selection: Selection, seed: int) -> RandomFigures:
        """One draw of the random control on the test split; by masking, which equals cutting, unless refitted."""
        drawn = selection.random(seed)
        if not self.compensation:
            return RandomFigures(seed, self._figures(self.masked(drawn.kept, "test"), drawn.kept))
        small, done = self.cut(drawn)
        return RandomFigures(seed, self._figures(self._tested(small), drawn.kept, done.parameters if done else 0))

    def _tested(self, small: PreTrainedModel) -> Evaluation:
        """A cut model on the test split."""
        forward = forward_of(small, self.task)
        return evaluate(forward, self.task, self.batches["test"], self.accelerator, self.originals("test"))

    def _figures(self, evaluation: Evaluation, kept: Bools, biases: int = 0) -> ModelFigures:
        gone = {kind: int(self.arms.parameters[(self.arms.kind == kind) & ~kept].sum()) for kind in ("neuron", "head")}
        pruned = evaluation is not self.baseline
        changed = self._changed(evaluation) if pruned else None
        return ModelFigures(
            parameters=self.totals["parameters"] - sum(gone.values()) + biases,
            ffn_parameters=self.totals["ffn_parameters"] - gone["neuron"],
            attention_parameters=self.totals["attention_parameters"] - gone["head"],
            macs=self.totals["macs"] - int(self.arms.macs[~kept].sum()),
            loss=evaluation.loss,
            kl=float(evaluation.kl.mean()),
            metrics=evaluation.metrics,
            intervals=evaluation.intervals,
            kl_bound=upper_mean(np.nan_to_num(evaluation.kl, nan=1.0).clip(0, 1)) if pruned else None,
            changed=None if changed is None else float(changed.mean()),
            changed_bound=None if changed is None else upper_share(int(changed.sum()), len(changed)),
        )

    def _changed(self, evaluation: Evaluation) -> Bools | None:
        """[N], which answers are others than the dense model's; None where answers are no single classes."""
        if not (self.task.predicts_classes and self.task.reads_one_position):
            return None
        return np.asarray(evaluation.scores.predicted != self.baseline.scores.predicted)


def make_report(
    settings: PruneConfig,
    session: Session,
    selection: Selection,
    small: PreTrainedModel,
    done: CompensationFigures | None,
    trained: RecoveryFigures | None,
    found: SearchResult,
    cost: Cost,
) -> Report:
    """Every figure but those of the files on disk.

    Args:
        settings: With the one target of this size.
        small: The cut model.
        done: What its compensation did.
        trained: What its recovery did.
    """
    task = session.task
    before, after = session.before_and_after(small, selection.kept, done.parameters if done else 0)
    return Report(
        model=settings.model.name,
        architecture=session.model.config.model_type,
        task=settings.task.type or task_for_model(type(session.model).__name__, session.model.config),
        dataset=settings.task.dataset.path,
        layout=selection.plan.layout,
        layout_reason=selection.reason,
        target=settings.prune.target.fractions(),
        seed=settings.seed,
        device=session.accelerator.device.type,
        sequence_length=session.tokens,
        main_metric=task.main_metric,
        greater_is_better=task.greater_is_better,
        before=before,
        after=after,
        random=[session.random(selection, seed) for seed in range(settings.output.random_seeds)],
        kept=kept_counts(session.arms, selection),
        search=SearchFigures(
            policy=dict(settings.search.policy),
            reward=settings.search.reward,
            arms=len(session.arms),
            pulls=cost.pulls,
            forward_tokens=cost.forward_tokens,
            backward_tokens=cost.backward_tokens,
            seconds=cost.seconds,
            processes=session.accelerator.num_processes,
            stopped_because=found.stopped_because,
            rounds=[asdict(done) for done in found.rounds],
            broken_batches=list(found.broken),
        ),
        compensation={"name": settings.compensation, **asdict(done)} if done else None,
        recovery=asdict(trained) if trained else None,
        warnings=warnings_of(selection, found, done, trained, after),
    )


def warnings_of(
    selection: Selection,
    found: SearchResult,
    done: CompensationFigures | None,
    trained: RecoveryFigures | None,
    after: ModelFigures,
) -> list[str]:
    """What a reader of the report must know."""
    said = []
    if found.broken:
        numbers = ", ".join(map(str, sorted(found.broken)))
        said.append(f"calibration batches without a finite loss were skipped: {numbers}")
    if (~selection.kept & found.kept).any():
        beyond = int((~selection.kept & found.kept).sum())
        said.append(f"{beyond} arms beyond the target of the search were removed by their last scores, not in context")
    left = [site for site in done.sites if not site.refitted] if done else []
    if left:
        sites = ", ".join(f"{site.kind}s of layer {site.layer} ({site.reason})" for site in left)
        said.append(f"the compensation left alone: {sites}")
    if trained:
        said.append("recovery trained the pruned model, not the random draws")
    if not np.isfinite(after.loss):
        said.append("the loss of the pruned model is not finite")
    return said


def kept_counts(arms: ArmTable, selection: Selection) -> dict[str, dict[int, tuple[int, int]]]:
    """kind -> layer -> (units kept, units before)."""
    counts: dict[str, dict[int, tuple[int, int]]] = {kind: {} for kind in KINDS}
    for kind, layer, rows in arms.groups():
        counts[kind][layer] = (int(arms.units[rows[selection.kept[rows]]].sum()), int(arms.units[rows].sum()))
    return counts
