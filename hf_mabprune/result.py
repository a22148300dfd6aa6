"""What a run found, ready to use: one size of it, and the finished search that other sizes are cut from."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from transformers import PreTrainedModel

from hf_mabprune import config
from hf_mabprune.arms import ArmTable
from hf_mabprune.artifacts import publish as hub
from hf_mabprune.artifacts.run_folder import RunFolder
from hf_mabprune.artifacts.run_writer import RunWriter
from hf_mabprune.checkpoints.ways import needed
from hf_mabprune.config import PruneConfig, PruningConfig
from hf_mabprune.effects.pulls.cost import Cost
from hf_mabprune.evaluation.comparison import Comparison
from hf_mabprune.evaluation.report import Report
from hf_mabprune.iterative import Stage
from hf_mabprune.runtime import files, places
from hf_mabprune.runtime.caller import undisturbed
from hf_mabprune.search.result import SearchResult
from hf_mabprune.selection.selected import Selection
from hf_mabprune.session import Session
from hf_mabprune.tasks.base import TASKS


@dataclass(frozen=True)
class FinishedSearch:
    """A search that has ended, and all that sizes are cut from.

    Attributes:
        comparison: Measures sizes beside the dense model.
        found: The nested order of removal.
        cost: Of the search.
        make: Makes one size: the stages after the search, as `pipeline.make_size` has them.
        stage: The last one of a run in stages, which made the only size there is.
    """

    comparison: Comparison
    found: SearchResult
    cost: Cost
    make: Callable[["FinishedSearch", PruningConfig], "PruneResult"] = field(repr=False)
    stage: Stage | None = None

    @property
    def session(self) -> Session:
        """Model, data and arms."""
        return self.comparison.session

    def cut(self, prune: PruningConfig) -> "PruneResult":
        """Makes one size, measured beside the dense model and random draws. Runs on every process of a launch.

        Raises:
            ValueError: If the target is out of reach, or another one than that of a run in stages.
        """
        return self.make(self, prune)


@dataclass(frozen=True)
class PruneResult:
    """A smaller model, and what it is worth.

    Attributes:
        model: Ready to use, save or push.
        report: Every figure of the run.
        arms: All arms.
        search: The order of removal and the history of the search.
        selection: The arms that stay.
        settings: Run settings, with the target of this size.
        finished: The search that other sizes are cut from.
        examples: What the dense model and this one said of each test example (`evaluation.examples`).
        sizes: Reports of all sizes that the run was asked for, this one's included.
    """

    model: PreTrainedModel
    report: Report
    arms: ArmTable
    search: SearchResult
    selection: Selection = field(repr=False)
    settings: PruneConfig = field(repr=False)
    finished: FinishedSearch = field(repr=False)
    examples: pd.DataFrame = field(repr=False)
    sizes: Sequence[Report] = ()

    def table(self) -> str:
        """before | after | random control, with 95% intervals."""
        return self.report.table()

    def arms_table(self) -> pd.DataFrame:
        """One row an arm: what it is, what was found out about it, and whether it stays."""
        return self.search.table(self.arms, self.selection.kept)

    def parts(self) -> tuple[PreTrainedModel, Report, pd.DataFrame, str, pd.DataFrame]:
        """What is written of it, as `RunWriter.add` takes it."""
        return self.model, self.report, self.arms_table(), self.settings.to_yaml(), self.examples

    @undisturbed()
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
        changed = self.finished.session.settings.model_dump()
        changed["prune"] |= {"target": target, **prune}
        sizes = config.check(changed).prune.sizes()
        if len(sizes) > 1:
            raise ValueError("cut makes one size: give one fraction, not a list")
        return self.finished.cut(sizes[0])

    def save_pretrained(self, folder: str | Path, overwrite: bool = False) -> None:
        """Writes checkpoint, tokenizer or processor, report, figures and model card into one folder.

        Args:
            folder: Made where it does not exist.
            overwrite: Replace what is there.

        Raises:
            FileExistsError: If the folder is not empty and `overwrite` is not set.
        """
        logs = RunFolder(self.settings.output.dir).logs
        places.check_output_dir(folder, overwrite, places.protected_by(self.settings, logs))
        files.rehearse(folder)
        with RunWriter(RunFolder(folder), self.finished.session, self.settings) as writer:
            writer.add(*self.parts())
            writer.finish()

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
        needs = f"   # {first}" if (first := needed(report.layout, report.architecture)) else ""
        several = len(self.sizes) > 1
        place = Path(folder) / report.size_name if several else folder
        tables = "\n".join(f"{size.size_name}\n{size.table()}" for size in self.sizes) if several else self.table()
        read_back = report.reload.get("max_logit_difference")
        saved = "not saved yet" if read_back is None else f"reload difference {read_back:.1g}"
        certificate = f"{held}\n" if (held := report.certificate()) and not several else ""
        vocabulary = f"vocabulary: {report.vocabulary}\n" if report.vocabulary else ""
        reached = "".join(f"target {size.reached}\n" for size in self.sizes or [report] if size.reached)
        reached += f"{report.promise}\n" if report.promise else ""
        beaten = f"{won}\n" if (won := report.against_random()) and not several else ""
        warnings = "".join(f"warning: {warning}\n" for warning in report.warnings)
        return (
            f"{tables}\n"
            f"{beaten}"
            f"{reached}"
            f"{vocabulary}"
            f"{100 * report.removed_fraction():.1f}% of FFN and attention parameters removed | "
            f"layout {report.layout}, {report.layout_reason}\n"
            f"stopped: {report.search.stopped_because} | {report.search.pulls:,} pulls "
            f"in {report.search.seconds:.0f} s | {saved}\n"
            f"{certificate}"
            f"{warnings}"
            f'load it: {auto_class}.from_pretrained("{place}"){needs}\n'
        )
