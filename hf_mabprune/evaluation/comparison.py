"""The rows of the report: the dense model, the pruned one and random draws of the same size, on the same data."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from hf_mabprune.architectures.cost import count_macs, count_parameters, parameters_after
from hf_mabprune.arms import LAYER, ArmTable, Bools
from hf_mabprune.compensation import CompensationFigures
from hf_mabprune.config import PruneConfig
from hf_mabprune.effects.broken import cause
from hf_mabprune.effects.pulls.cost import Cost
from hf_mabprune.evaluation.bounds import upper_mean
from hf_mabprune.evaluation.cautions import of_the_result, of_the_run
from hf_mabprune.evaluation.chance import below_chance
from hf_mabprune.evaluation.figures import (
    ModelFigures,
    RandomFigures,
    SearchFigures,
    VocabularyFigures,
)
from hf_mabprune.evaluation.latency import measure_latency
from hf_mabprune.evaluation.quality import (
    Evaluation,
    Forward,
    changed_answers,
    evaluate,
    forward_of,
    masked_forward_of,
    paired_difference,
    paired_divergence,
)
from hf_mabprune.evaluation.reached import target_figures
from hf_mabprune.evaluation.report import Report
from hf_mabprune.evaluation.vocabulary import vocabulary_figures
from hf_mabprune.progress import stage
from hf_mabprune.recovery.recover import RecoveryFigures
from hf_mabprune.runtime.hashes import sha256_of_batches, sha256_of_weights
from hf_mabprune.search.result import SearchResult
from hf_mabprune.search.run import by_criterion
from hf_mabprune.selection.selected import Selection
from hf_mabprune.session import Session
from hf_mabprune.surgery.configs import touched
from hf_mabprune.surgery.cut import cut, kept_units
from hf_mabprune.surgery.empty_layers import without_empty_layers
from hf_mabprune.tasks.lookup import task_for_model

LOOKS = 16  # batches of the validation split, short ones and long ones, that show whether a model is worse than chance


@dataclass(frozen=True)
class Comparison:
    """Measures smaller models beside the dense one, on splits that the search never saw.

    What the dense model says is read from the record of the session; only the latency runs both models, in turns,
    for a ratio of times that were taken apart would be one of noise.
    """

    session: Session

    @cached_property
    def dense(self) -> Evaluation:
        """The dense model on the test split.

        Raises:
            ValueError: If its loss is not finite.
        """
        with stage("dense model on test"):
            evaluation = self.measured(self._dense_on("test"), "test", beside_dense=False)
        return self._finite(evaluation, "test")

    @cached_property
    def vocabulary(self) -> VocabularyFigures | None:
        """What went of the vocabulary, and what that changed; None where all of it stays."""
        cut = self.session.vocabulary
        return vocabulary_figures(self.session, cut, self.dense) if cut else None

    @cached_property
    def doubts(self) -> list[str]:
        """What makes one doubt that model and data belong together: that the dense model is worse than chance.

        Validation data decide, before the search; so do test data, whose figures are known by then.

        Raises:
            ValueError: If the loss of the dense model is not finite.
        """
        task = self.session.task
        batches = self.session.batches["validation"]
        some = [batches[number] for number in np.unique(np.linspace(0, len(batches) - 1, LOOKS).round().astype(int))]
        plain = forward_of(self.session.dense, task, some)  # not from the record, which has the search to serve first
        with stage("dense model on validation"):
            validation = evaluate(plain, task, some, self.session.accelerator, intervals=False)
        seen = {"validation": self._finite(validation, "validation"), "test": self.dense}
        worse = {split: below_chance(task, evaluation.scores) for split, evaluation in seen.items()}
        return [
            f"the dense model is worse than chance on the {split} split: {below.how}; {below.meaning}"
            for split, below in worse.items()
            if below
        ]

    def _finite(self, evaluation: Evaluation, split: str) -> Evaluation:
        """Gives what the dense model reaches; raises ValueError where a loss is not finite, with the reason."""
        if broken := int((~np.isfinite(evaluation.scores.losses)).sum()):
            session = self.session
            raise ValueError(
                f"the dense model's loss on {broken:,} of {len(evaluation.kl):,} {split} examples is not finite: "
                f"{cause(session.dense, session.task, session.batches[split])}"
            )
        return evaluation

    @cached_property
    def origin(self) -> tuple[str, str, str]:
        """SHA-256 of what every size is made from, and tested on: dense weights, calibration and test batches."""
        calibration, test = (sha256_of_batches(self.session.batches[split]) for split in ("calibration", "test"))
        return sha256_of_weights(self.session.dense), calibration, test

    def masked(self, kept: Bools, split: str, intervals: bool = True) -> Evaluation:
        """Measures the dense model with only `kept` arms, [K], by masking."""
        session = self.session
        keep = session.arms.kept_units(kept)
        forward = masked_forward_of(session.dense, session.task, keep, session.batches[split])
        return self.measured(forward, split, intervals=intervals)

    def measured(self, forward: Forward, split: str, beside_dense: bool = True, intervals: bool = True) -> Evaluation:
        """Measures a forward pass over a split.

        Args:
            forward: Forward pass of a model.
            split: Name of the split.
            beside_dense: Whether the KL divergence from the dense model is measured too.
            intervals: Whether to bootstrap them.
        """
        session = self.session
        dense = self._dense_on(split) if beside_dense else None
        return evaluate(forward, session.task, session.batches[split], session.accelerator, dense, intervals)

    @property
    def _apart(self) -> bool:
        """Whether bounds come from a split of their own, which has not chosen the size that they are of."""
        return "certification" in self.session.batches and self.session.settings.prune.promise is None

    def _dense_on(self, split: str) -> Forward:
        """What the dense model says on a split, from the record."""
        self.session.record_split(split)
        return lambda number, batch: self.session.dense_on(split, number, batch)

    def report(
        self,
        settings: PruneConfig,
        selection: Selection,
        small: PreTrainedModel,
        refitted: CompensationFigures | None,
        trained: RecoveryFigures | None,
        found: SearchResult,
        cost: Cost,
        tested: Evaluation,
    ) -> Report:
        """Measures one size, and gathers every figure but those of the files on disk.

        Args:
            settings: Run settings, with the one target of this size.
            selection: Arms that stay.
            small: The smaller model, with the weights that will be saved.
            refitted: What its compensation did.
            trained: What its recovery did.
            found: The finished search.
            cost: Of the search.
            tested: The smaller model on the test split.
        """
        session, task = self.session, self.session.task
        before, after = self._before_and_after(small, tested)
        random = self._random_draws(selection, settings.output.random_seeds, tested)
        alone = {name: self.alone(name, selection, tested) for name in settings.output.criteria}
        kept = kept_counts(session.arms, selection)
        return Report(
            model=settings.model.name,
            architecture=session.dense.config.model_type,
            task=settings.task.type or task_for_model(type(session.dense).__name__, session.dense.config),
            dataset=settings.task.dataset.path,
            layout=selection.plan.layout,
            layout_reason=selection.reason,
            target=settings.prune.target.amounts(),
            seed=settings.seed,
            device=session.accelerator.device.type,
            sequence_length=session.example.length,
            main_metric=task.main_metric,
            greater_is_better=task.greater_is_better,
            before=before,
            after=after,
            random=random,
            alone=alone,
            kept=kept,
            search=self._search_figures(settings, found, cost),
            compensation={"name": settings.compensation, **asdict(refitted)} if refitted else None,
            recovery=asdict(trained) if trained else None,
            vocabulary=self.vocabulary,
            reached=target_figures(session, settings.prune.target, selection, small),
            warnings=[
                *session.warnings,
                *self._worse_than_chance(tested),
                *of_the_run(selection, found, refitted, trained),
                *of_the_result(after, random, kept),
            ],
            certified_on="certification" if self._apart else "test",
            dense_sha256=self.origin[0],
            calibration_sha256=self.origin[1],
            test_sha256=self.origin[2],
        )

    def _random_draws(self, selection: Selection, count: int, tested: Evaluation) -> list[RandomFigures]:
        draws = []
        with stage("random draws", count, "draws") as work:
            for seed in range(count):
                draws.append(RandomFigures(seed, self._control(selection.random(seed), tested)))
                work.count(len(draws))
        return draws

    @stage("criteria alone")
    def alone(self, criterion: str, selection: Selection, tested: Evaluation) -> ModelFigures:
        """Measures what a criterion leaves that chooses alone, by the same plan as a selection.

        Args:
            criterion: Its name.
            selection: Arms that stay in the pruned model.
            tested: The pruned model on the test split.
        """
        found, _ = by_criterion(self.session, [selection.plan], criterion)
        return self._control(selection.following(found.order), tested)

    def _control(self, chosen: Selection, tested: Evaluation) -> ModelFigures:
        """Measures other arms in the place of those of the pruned model, which was tested; by masking, which equals
        cutting, unless they are refitted."""
        session = self.session
        if not session.compensation:
            evaluation, counts = self.masked(chosen.kept, "test"), self._without(chosen.kept)
        else:
            keep = session.arms.kept_units(chosen.kept)
            small = cut(session.dense, keep, chosen.plan.layout, passing=True)
            session.refit(small, keep)
            small = without_empty_layers(small, passing=True)
            evaluation, counts = self.tested(small), self._counts(small)
        behind = paired_difference(session.task.main_metric, tested, evaluation)
        above = paired_divergence(evaluation, tested)
        return replace(self._figures(evaluation, counts), behind=behind, kl_above=above)

    @stage("evaluation")
    def _before_and_after(self, small: PreTrainedModel, tested: Evaluation) -> tuple[ModelFigures, ModelFigures]:
        """The dense and the cut model on the test split, with latencies measured in turns."""
        session, test = self.session, self.session.batches["test"]
        behind = paired_difference(session.task.main_metric, tested, self.dense)
        counts = self._counts(session.vocabulary.whole) if session.vocabulary else session.totals
        before = replace(self._figures(self.dense, counts), behind=behind)
        after = self._figures(tested, self._counts(small))
        after = self._certified(after, small) if self._apart else after
        slow, fast = measure_latency([session.dense, small], session.task, test[len(test) // 2])
        return replace(before, latency_ms=slow), replace(after, latency_ms=fast)

    def on_certification(self, small: PreTrainedModel) -> tuple[Evaluation, Evaluation]:
        """Measures the pruned model and the dense one on the certification split."""
        split = "certification"
        forward = forward_of(small, self.session.task, self.session.batches[split])
        evaluation = self.measured(forward, split, intervals=False)
        dense = self.measured(self._dense_on(split), split, beside_dense=False, intervals=False)
        return evaluation, self._finite(dense, split)

    def _certified(self, after: ModelFigures, small: PreTrainedModel) -> ModelFigures:
        """Gives the figures of the pruned model with bounds from the split that is for them alone."""
        kl_bound, _, changed_bound = self._bounds(*self.on_certification(small))
        return replace(after, kl_bound=kl_bound, changed_bound=changed_bound)

    def tested(self, small: PreTrainedModel) -> Evaluation:
        """A cut model on the test split."""
        return self.measured(forward_of(small, self.session.task, self.session.batches["test"]), "test")

    def _worse_than_chance(self, tested: Evaluation) -> list[str]:
        """Warns of a pruned model that is, or of the dense one."""
        below = None if self.doubts else below_chance(self.session.task, tested.scores)
        return [f"the pruned model is worse than chance on the test split: {below.how}"] if below else self.doubts

    def _counts(self, small: PreTrainedModel) -> dict[str, int]:
        """Parameters and MACs of a cut model."""
        return count_parameters(small) | {"macs": count_macs(small, self.session.example)}

    def _without(self, kept: Bools) -> dict[str, int]:
        """Parameters and MACs of the model that only has the arms kept, [K]."""
        session = self.session
        arms, totals = session.arms, session.totals
        if LAYER in arms.kinds():
            return self._counts(cut(session.dense, arms.kept_units(kept), "per_layer", passing=True))
        changed = touched(kept_units(session.dense, arms.kept_units(kept)))
        counts = {name: totals[name] for name in ("parameters", "ffn_parameters", "attention_parameters")}
        left = parameters_after(session.dense, changed, counts)
        return left | {"macs": totals["macs"] - int(arms.macs[~kept].sum())}

    def _figures(self, evaluation: Evaluation, counts: Mapping[str, Any]) -> ModelFigures:
        pruned = evaluation is not self.dense
        kl_bound, changed, changed_bound = self._bounds(evaluation, self.dense) if pruned else (None, None, None)
        return ModelFigures(
            **counts,
            loss=evaluation.loss,
            kl=float(evaluation.kl.mean()),
            metrics=evaluation.metrics,
            intervals=evaluation.intervals,
            kl_bound=kl_bound,
            changed=changed,
            changed_bound=changed_bound,
        )

    def _bounds(self, evaluation: Evaluation, dense: Evaluation) -> tuple[float, float | None, float | None]:
        """Gives the bound of the mean KL divergence, the part of answers that are others than the dense model's, and
        its bound; None where answers are no classes, or are not kept."""
        task, kl_bound = self.session.task, upper_mean(np.nan_to_num(evaluation.kl, nan=1.0).clip(0, 1))
        if not (task.predicts_classes and task.keeps_predictions and evaluation.scores.answers.any()):
            return kl_bound, None, None
        return kl_bound, *changed_answers(evaluation.scores, dense.scores)

    def _search_figures(self, settings: PruneConfig, found: SearchResult, cost: Cost) -> SearchFigures:
        by_pulls = settings.search.criterion is None
        return SearchFigures(
            policy=dict(settings.search.policy) if by_pulls else {},
            criterion=settings.search.criterion,
            rule=settings.resolved_rule() if by_pulls else {},
            reward=settings.search.reward,
            arms=len(self.session.arms),
            pulls=cost.pulls,
            forward_tokens=round(cost.forward_tokens),
            backward_tokens=round(cost.backward_tokens),
            seconds=cost.seconds,
            processes=self.session.accelerator.num_processes,
            stopped_because=found.stopped_because,
            rounds=[asdict(done) for done in found.rounds],
            broken_batches=list(found.broken),
        )


def kept_counts(arms: ArmTable, selection: Selection) -> dict[str, dict[str, tuple[int, int]]]:
    """kind -> name of the site -> (units kept, units before)."""
    counts: dict[str, dict[str, tuple[int, int]]] = {kind: {} for kind in arms.kinds()}
    for site, rows in arms.groups():
        kept = int(arms.units[rows[selection.kept[rows]]].sum())
        counts[str(arms.kind[rows[0]])][site] = (kept, int(arms.units[rows].sum()))
    return counts
