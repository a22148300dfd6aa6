"""Sizes from one search: selection -> surgery -> comparison -> folder. Cutting another size needs no new pulls."""

import tempfile
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_mabprune import config
from hf_mabprune.arms import ArmTable
from hf_mabprune.artifacts import publish as hub
from hf_mabprune.artifacts.run_folder import DETAILS, save_weights, write_overview, write_views
from hf_mabprune.checkpoints.save import round_weights
from hf_mabprune.config import PruneConfig, PruningConfig
from hf_mabprune.effects.pulls.base import Cost
from hf_mabprune.evaluation.comparison import Selection, Session, make_report
from hf_mabprune.evaluation.report import Report, SizeFigures
from hf_mabprune.iterative import Stage
from hf_mabprune.recovery.recover import recover
from hf_mabprune.runtime import files
from hf_mabprune.runtime.processes import on_main
from hf_mabprune.runtime.resume import FILE
from hf_mabprune.search.loop import SearchResult
from hf_mabprune.selection import layouts
from hf_mabprune.tasks.base import TASKS


@dataclass(frozen=True)
class Source:
    """A finished search, and all that sizes are cut from.

    Attributes:
        settings: Of the run.
        save_dtype: Precision of saved weights.
        found: The nested order of removal.
        cost: Of the search.
        stage: The last one of a run in stages, which made the only size there is.
    """

    settings: PruneConfig
    session: Session
    tokenizer: PreTrainedTokenizerBase
    save_dtype: torch.dtype
    found: SearchResult
    cost: Cost
    stage: Stage | None = None

    def cut(self, prune: PruningConfig) -> "PruneResult":
        """One size, measured beside the dense model and random draws. Runs on every process of a launch.

        Raises:
            ValueError: If the target is out of reach, or another one than that of a run in stages.
        """
        session = self.session
        if self.stage:
            return self._end_of(self.stage, prune)
        settings = self.settings.model_copy(update={"prune": prune})
        plans = layouts.make_plans(session.model, session.arms, session.totals, prune)
        selection = choose_layout(session, plans, self.found, settings)
        model, done = session.cut(selection)
        trained = None
        if settings.recovery and session.training is not None:
            arguments = (
                session.model,
                session.task,
                session.training,
                settings.recovery,
                session.accelerator,
                settings.seed,
            )
            trained = recover(model, *arguments)
        round_weights(model, self.save_dtype)
        report = make_report(settings, session, selection, model, done, trained, self.found, self.cost)
        return PruneResult(model, report, session.arms, self.found, selection, settings, self)

    def _end_of(self, stage: Stage, prune: PruningConfig) -> "PruneResult":
        session, settings, model = self.session, self.settings, stage.session.model
        if prune.target != settings.prune.target:
            raise ValueError(
                "a run in stages trained its model for one size; for others make new runs, or set recovery.stages to 1"
            )
        reason = "asked for" if prune.layout == stage.plan.layout else "auto: after stages there is no other to try"
        selection = Selection(stage.plan, self.found.kept, 1, prune.min_neurons, reason)
        round_weights(model, self.save_dtype)
        report = make_report(settings, session, selection, model, stage.done, stage.trained, self.found, self.cost)
        return PruneResult(model, report, session.arms, self.found, selection, settings, self)


@dataclass(frozen=True)
class PruneResult:
    """A smaller model, and what it is worth.

    Attributes:
        model: Ready to use, save or push.
        report: Every figure of the run.
        arms: All arms.
        search: The order of removal and the history of the search.
        selection: The arms that stay.
        settings: Of the run, with the target of this size.
        source: What other sizes are cut from.
        sizes: Reports of all sizes that the run was asked for, this one's included.
    """

    model: PreTrainedModel
    report: Report
    arms: ArmTable
    search: SearchResult
    selection: Selection = field(repr=False)
    settings: PruneConfig = field(repr=False)
    source: Source = field(repr=False)
    sizes: Sequence[Report] = ()

    def table(self) -> str:
        """before | after | random control, with 95% intervals."""
        return self.report.table()

    def arms_table(self) -> pd.DataFrame:
        """One row an arm: what it is, what was found out about it, and whether it stays."""
        return self.search.table(self.arms, self.selection.kept)

    def cut(self, target: dict[str, Any], **prune: Any) -> "PruneResult":
        """Another size from the same search, without new pulls.

        Args:
            target: What to remove of the dense model, e.g. `{"parameters": 0.5}`.
            prune: Other settings of the YAML's `prune` part that concern the choice: layout, round_to, floors.

        Returns:
            That size, in memory only until `save_pretrained` writes it.

        Raises:
            ValueError: If the target is out of reach or a setting is wrong.
        """
        changed = self.source.settings.model_dump()
        changed["prune"] |= {"target": target, **prune}
        sizes = config.check(changed).prune.sizes()
        if len(sizes) > 1:
            raise ValueError("cut makes one size: give one fraction, not a list")
        return self.source.cut(sizes[0])

    def save_pretrained(self, folder: str | Path, overwrite: bool = False) -> None:
        """Writes checkpoint, tokenizer, report, figures and model card into one folder.

        Args:
            folder: Made where it does not exist.
            overwrite: Replace what is there.

        Raises:
            FileExistsError: If the folder is not empty and `overwrite` is not set.
        """
        files.check_output_dir(folder, overwrite, files.protected_by(self.settings))
        write(folder, [self], self.settings)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Publishes what `save_pretrained` writes.

        Args:
            repo_id: `owner/name`, or `name` under the owner of the token.
            options: Those of `hub.push_checkpoint`: private, revision, message, license, base_model, token.

        Returns:
            URL of the commit.

        Raises:
            ValueError, PermissionError, ConnectionError: As `hub.push_checkpoint`.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(Path(folder) / "checkpoint")
            return hub.push_checkpoint(Path(folder) / "checkpoint", repo_id, **options)

    def summary(self, folder: str | Path) -> str:
        """The table, and what to know about it: the last words of a run.

        Args:
            folder: That the run wrote to.
        """
        report = self.report
        auto_class = TASKS.get(report.task).auto_class
        needs = "" if report.layout == "uniform" else "   # after import hf_mabprune, or with trust_remote_code=True"
        several = len(self.sizes) > 1
        place = Path(folder) / report.size_name if several else folder
        tables = "\n".join(f"{size.size_name}\n{size.table()}" for size in self.sizes) if several else self.table()
        read_back = report.reload.get("max_logit_difference")
        saved = "not saved yet" if read_back is None else f"reload difference {read_back:.1g}"
        certificate = f"{held}\n" if (held := report.certificate()) and not several else ""
        warnings = "".join(f"warning: {warning}\n" for warning in report.warnings)
        return (
            f"{tables}\n"
            f"{100 * report.removed_fraction():.1f}% of FFN and attention parameters removed | "
            f"layout {report.layout}, {report.layout_reason}\n"
            f"stopped: {report.search.stopped_because} | {report.search.pulls:,} pulls "
            f"in {report.search.seconds:.0f} s | {saved}\n"
            f"{certificate}"
            f"{warnings}"
            f'load it: {auto_class}.from_pretrained("{place}"){needs}\n'
        )


def choose_layout(session: Session, plans: layouts.Plans, found: SearchResult, settings: PruneConfig) -> Selection:
    """The arms that stay; where `auto` has a choice, validation decides between the layouts."""
    rules = layouts.width_multiple(settings.prune, session.model.config.hidden_size), settings.prune.min_neurons
    best = Selection.along(plans.search, found.order, *rules, plans.reason)
    if plans.uniform is None:
        return best
    even = Selection.along(plans.uniform, found.order, *rules)
    loss, even_loss = (session.masked(s.kept, "validation", intervals=False).loss for s in (best, even))
    cost = f"validation loss {even_loss:.4f} uniform, {loss:.4f} per_layer"
    if even_loss <= loss * (1 + settings.prune.auto_tolerance):
        return replace(even, reason=f"auto: loads with plain AutoModel and costs little: {cost}")
    return replace(best, reason=f"auto: uniform costs too much quality: {cost}")


def write(
    folder: str | Path,
    cuts: Iterable["PruneResult"],
    settings: PruneConfig,
    earlier: Sequence[SizeFigures] = (),
    search_state: bytes | None = None,
) -> "PruneResult":
    """Puts one size into a folder, or several into folders of their own below it, all or nothing.

    Runs on every process of a launch; the main process writes, and its errors reach all.

    Args:
        cuts: Of the same search, from the largest model to the smallest.
        settings: Of the run that asked for them.
        earlier: Sizes that were cut from the search before, for the comparison.
        search_state: The saved search, to lie beside the report.

    Returns:
        The last size, with the figures of the files on disk and the reports of all.
    """
    several = len(settings.prune.sizes()) > 1
    reports: list[Report] = []
    details: list[tuple[pd.DataFrame, str]] = []
    work = Path()  # only the main process has one
    with ExitStack() as stack:
        for result in cuts:
            accelerator = result.source.session.accelerator
            if not reports and accelerator.is_main_process:
                work = stack.enter_context(files.atomic_folder(folder))
            reports.append(on_main(accelerator, partial(_save, result, work, several)))
            details.append((result.arms_table(), result.settings.to_yaml()))
        sizes = [*earlier, *(report.in_short() for report in reports)]
        reports = [replace(report, sizes=sizes) for report in reports]

        def describe() -> None:
            for report, (arms, config_yaml) in zip(reports, details, strict=True):
                place = work / report.size_name if several else work
                write_views(report, arms, config_yaml, place)
                if search_state is not None:
                    (place / DETAILS / FILE).write_bytes(search_state)
            if several:
                write_overview(reports, settings.to_yaml(), work)

        on_main(accelerator, describe)
    accelerator.wait_for_everyone()
    return replace(result, report=reports[-1], sizes=reports)


def _save(result: PruneResult, work: Path, several: bool) -> Report:
    source = result.source
    place = work / result.report.size_name if several else work
    return save_weights(result.report, result.model, source.tokenizer, source.save_dtype, source.session, place)
