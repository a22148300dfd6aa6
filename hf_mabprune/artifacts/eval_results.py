"""The result of a run as the Hub's benchmarks read it, beside the card's older form: `.eval_results/*.yaml`.

Source: https://huggingface.co/docs/hub/eval-results.
"""

import math
import re

import yaml
from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

from hf_mabprune.artifacts.redaction import hub_dataset
from hf_mabprune.artifacts.run_folder import RunFolder
from hf_mabprune.config import PruneConfig
from hf_mabprune.errors import one_line
from hf_mabprune.evaluation.report import Report

COMMIT = re.compile(r"[0-9a-f]{40}")


def eval_results(report: Report, settings: PruneConfig, repo_id: str | None = None) -> str | None:
    """Gives the main metric of the pruned model on the test split, as YAML.

    Args:
        report: Report of the run; what the dense model reached is no result of this checkpoint.
        settings: Settings of the run, which name the data.
        repo_id: Hub name that the checkpoint gets, where its report will lie; None where it is not known.

    Returns:
        The text of a file; None where the data are not on the Hub, or the metric is no number.
    """
    dataset, value = hub_dataset(settings), report.after.metrics[report.main_metric]
    if dataset is None or not math.isfinite(value):
        return None
    source = settings.task.dataset
    examples = settings.task.evaluation_examples
    some = f", {examples:,} examples drawn with seed {settings.seed}" if examples else ""
    revision = source.revision if source.revision and COMMIT.fullmatch(source.revision) else None
    place = RunFolder("").report.as_posix()
    entry = EvalResultEntry(
        dataset_id=dataset,
        task_id=one_line(source.name or "default"),
        value=float(value),
        dataset_revision=revision,
        source_url=f"https://huggingface.co/{repo_id}/blob/main/{place}" if repo_id else None,
        source_name="report of the pruning run" if repo_id else None,
        notes=one_line(f"{report.main_metric} on split {settings.task.splits.test}{some}, pruned with hf_mabprune"),
    )
    return yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False)


def write_eval_results(report: Report, settings: PruneConfig, folder: RunFolder, repo_id: str | None = None) -> bool:
    """Writes that file into the folder of a run, where there is something to say; tells whether there is."""
    if (text := eval_results(report, settings, repo_id)) is None:
        return False
    folder.eval_results.parent.mkdir(parents=True, exist_ok=True)
    folder.eval_results.write_text(text)
    return True
