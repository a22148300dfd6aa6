"""Writes the folder of a run: checkpoint, report, table of arms, figures and model card of every size."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import TracebackType

import pandas as pd
import torch
from transformers import PreTrainedModel

from hf_mabprune.artifacts import card, checksums, plots
from hf_mabprune.artifacts.eval_results import write_eval_results
from hf_mabprune.artifacts.run_folder import RunFolder
from hf_mabprune.checkpoints.load import HALF_TOLERANCE, TOLERANCE, reload_difference
from hf_mabprune.checkpoints.offload import places_of
from hf_mabprune.checkpoints.save import save_checkpoint
from hf_mabprune.config import PruneConfig, check, parse_yaml
from hf_mabprune.evaluation.figures import PlaceFigures, SizeFigures
from hf_mabprune.evaluation.report import Report
from hf_mabprune.places import Subject, tried_at_end
from hf_mabprune.places.subject import TEXTS
from hf_mabprune.progress import stage
from hf_mabprune.runtime.files import atomic_folder
from hf_mabprune.runtime.processes import on_main
from hf_mabprune.session import Session
from hf_mabprune.tasks.batch import Batch

MOST_PARAMETERS = 1_000_000_000  # of a model that is read back several times at the end of its run


@dataclass(frozen=True)
class _Size:
    """What is kept of a size once its weights are written."""

    report: Report
    arms: pd.DataFrame
    config_yaml: str
    examples: pd.DataFrame


class RunWriter:
    """Fills the folder of a run, all or nothing: it is in place once `finish` returns, and not there before.

    Use as a context manager, on every process of a launch; the main process writes, and its errors reach all. Of
    several sizes each gets a folder of its own. Add them from the largest model to the smallest, and drop each model
    once it is added: none is kept here.

        with RunWriter(RunFolder("runs/x"), session, settings) as writer:
            for result in results:
                writer.add(*result.parts())
            reports = writer.finish()

    Args:
        folder: Folder of the run; what is there must have passed `check_output_dir`.
        session: Task, data, processor and precision of the files, the same for all sizes.
        settings: Run settings, with all sizes that were asked for.
    """

    def __init__(self, folder: RunFolder, session: Session, settings: PruneConfig) -> None:
        self.folder = folder
        self.session = session
        self.settings = settings
        self._several = len(settings.prune.sizes()) > 1
        self._sizes: list[_Size] = []
        self._open = ExitStack()  # holds the unfinished folder, on the main process alone
        self._work: RunFolder | None = None
        self._finished = False

    def __enter__(self) -> "RunWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None and not self._finished:
            with self._open:
                raise RuntimeError(f"{self.folder.root} was not finished: nothing was written")
        self._open.__exit__(kind, error, trace)

    @stage("saving")
    def add(
        self, model: PreTrainedModel, report: Report, arms: pd.DataFrame, config_yaml: str, examples: pd.DataFrame
    ) -> None:
        """Saves the checkpoint of one size and reads it back.

        Args:
            model: Model to save, its weights rounded to the precision of the file.
            report: Report of this size.
            arms: Table of arms, [K rows], that says which of them this size keeps.
            config_yaml: Settings of this size.
            examples: What both models said of each test example (`evaluation.examples`).

        Raises:
            RuntimeError: If the checkpoint does not give the logits of the model in memory.
            OSError: If the disk is full.
        """
        report = on_main(self.session.accelerator, partial(self._save, model, report))
        self._sizes.append(_Size(report, arms, config_yaml, examples))

    @stage("saving")
    def finish(self, earlier: Sequence[SizeFigures] = (), search_state: bytes | None = None) -> list[Report]:
        """Writes reports, tables, figures and cards, and puts the folder in its place.

        Args:
            earlier: Sizes that were cut from the search before, for the comparison.
            search_state: The saved search, to lie beside each report; None where none was saved.

        Returns:
            The reports of all sizes in the order they were added, with the figures of the files on disk.

        Raises:
            OSError: If the disk is full, or somebody has put something into the place meanwhile.
        """
        sizes = [*earlier, *(size.report.in_short() for size in self._sizes)]
        self._sizes = [replace(size, report=replace(size.report, sizes=sizes)) for size in self._sizes]
        on_main(self.session.accelerator, partial(self._complete, search_state))
        self._finished = True
        return [size.report for size in self._sizes]

    def _save(self, model: PreTrainedModel, report: Report) -> Report:
        """Writes a checkpoint; gives the report with the figures of the files on disk."""
        if self._work is None:
            self._work = RunFolder(self._open.enter_context(atomic_folder(self.folder.root)))
        folder = self._place(self._work, report)
        folder.root.mkdir(exist_ok=True)
        session, beside = self.session, self.session.task.side_files()
        checkpoint_bytes = save_checkpoint(model, folder.root, session.processor, session.save_dtype, beside)
        dense_bytes = report.before.parameters * session.save_dtype.itemsize
        reached = report.reached
        if reached and reached.achieved is None:
            reached = replace(reached, achieved=float(checkpoint_bytes))
        return replace(
            report,
            reached=reached,
            before=replace(report.before, checkpoint_bytes=dense_bytes),
            after=replace(report.after, checkpoint_bytes=checkpoint_bytes),
            reload={"max_logit_difference": self._reload(model, folder)},
            places=self._places(model, folder, report),
        )

    def _inputs(self, model: PreTrainedModel) -> Batch:
        return self.session.task.few_inputs(model, self.session.batches["test"][-1])

    @torch.inference_mode()
    def _places(self, model: PreTrainedModel, folder: RunFolder, report: Report) -> list[PlaceFigures]:
        """Tries the checkpoint where that takes a second or two; a large model, or one in half precision, nowhere."""
        if model.dtype != torch.float32 or places_of(model) or report.after.parameters > MOST_PARAMETERS:
            return []
        task, inputs = self.session.task, self._inputs(model)
        subject = Subject(
            folder=folder.root,
            model_type=report.architecture,
            auto_class=task.auto_class,
            layout=report.layout,
            inputs={name: tensor.cpu() for name, tensor in inputs.items()},
            expected=model(**inputs)[0].float().cpu(),
            texts=TEXTS if model.main_input_name == "input_ids" else (),
        )
        return tried_at_end(subject)

    def _reload(self, model: PreTrainedModel, folder: RunFolder) -> float:
        """Gives the largest difference of the checkpoint's logits from the model's, on one batch of the test split."""
        task, inputs = self.session.task, self._inputs(model)
        difference = reload_difference(model, folder.root, task.auto_class, inputs)
        if not difference <= TOLERANCE.get(model.dtype, HALF_TOLERANCE):  # nan is no small difference
            raise RuntimeError(
                f"the saved checkpoint differs from the model in memory by {difference:.2g} on logits; nothing was "
                "written"
            )
        return difference

    def _complete(self, search_state: bytes | None) -> None:
        """Adds what describes the checkpoints, and closes the folder, which moves into its place."""
        if self._work is None:
            raise RuntimeError(f"no size was added to {self.folder.root}: nothing was written")
        known: dict[str, str] = {}  # checksums of the folders of sizes, for that of all
        for size in self._sizes:
            folder = self._place(self._work, size.report)
            _describe(folder, size)
            if search_state is not None:
                folder.search_state.write_bytes(search_state)
            digests = checksums.write(folder.root, folder.checksums)
            known |= {f"{folder.root.name}/{name}": digest for name, digest in digests.items()}
        if self._several:
            _describe_all(self._work, [size.report for size in self._sizes], self.settings.to_yaml())
            checksums.write(self._work.root, self._work.checksums, known)
        self._open.close()

    def _place(self, work: RunFolder, report: Report) -> RunFolder:
        return work.size(report.size_name) if self._several else work


def _describe(folder: RunFolder, size: _Size) -> None:
    """Writes report, table of arms, settings, figures and model card of one size."""
    folder.details.mkdir(exist_ok=True)
    folder.config.write_text(size.config_yaml)
    folder.report.write_text(size.report.to_json())
    size.arms.to_parquet(folder.arms)
    size.examples.to_parquet(folder.examples)
    plots.save_figures(size.report, size.arms, folder.figures)
    card.write_card(size.report, size.config_yaml, folder.root)
    write_eval_results(size.report, check(parse_yaml(size.config_yaml, str(folder.config))), folder)


def _describe_all(folder: RunFolder, reports: Sequence[Report], config_yaml: str) -> None:
    """Writes card, figure and settings of a folder that holds several sizes, each in a folder of its own."""
    folder.details.mkdir(exist_ok=True)
    folder.config.write_text(config_yaml)
    plots.save_pareto(reports[-1], folder.figures)
    card.write_overview(reports, folder.root)


def add_places(root: str | Path, rows: Sequence[PlaceFigures]) -> None:
    """Puts what came of trying places into the report and the card of a finished run, over earlier rows of these.

    Args:
        root: Folder of a run, of one size.
        rows: One a place.

    Raises:
        ValueError: If the folder holds no such run, or its files have changed.
    """
    folder = RunFolder(root)
    if folder.sizes():
        raise ValueError(f"{root} holds several sizes: name the folder of one")
    folder.check_unchanged()
    _, report = folder.read()
    known = {row.place: row for row in (*report.places, *rows)}
    report = replace(report, places=[known[name] for name in sorted(known)])
    folder.report.write_text(report.to_json())
    card.write_card(report, folder.config.read_text(), folder.root)
    checksums.write(folder.root, folder.checksums)
