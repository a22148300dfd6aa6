"""The model card of a run: README.md of the checkpoint, a view of the report that is made to be published.

What it shows goes through `redaction` first, so no local path and no credential is in it.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from hf_mabprune.arms import KINDS
from hf_mabprune.artifacts.base_card import Origin
from hf_mabprune.artifacts.markdown import LONGEST_NAME, code, fenced, text
from hf_mabprune.artifacts.redaction import (
    NOT_ON_THE_HUB,
    hub_dataset,
    hub_model,
    is_repo_id,
    last_part,
    public_config,
    without_paths,
)
from hf_mabprune.artifacts.run_folder import RunFolder
from hf_mabprune.artifacts.tables import UNITS, kept_table, places_table, results_table, sizes_table
from hf_mabprune.checkpoints.processors import OWN_PROCESSORS, kind_of_processor
from hf_mabprune.checkpoints.ways import is_known, needed
from hf_mabprune.config import SAMPLE_TEXT, PruneConfig, check, parse_yaml
from hf_mabprune.errors import beginning, one_line
from hf_mabprune.evaluation.figures import SearchFigures
from hf_mabprune.evaluation.report import Report
from hf_mabprune.tasks.base import TASKS

TEMPLATE = Path(__file__).with_name("card_template.md")
TAGS = ["pruned", "structured-pruning", "hf_mabprune"]
POLICY_TAG = "multi-armed-bandit"
UNKNOWN = Origin()
FIGURES = {
    "kept_widths": "FFN neurons and attention heads kept in each layer",
    "effects": "Effects of removed and of kept arms",
    "search": "KL divergence and loss on one calibration batch after each round of the search",
    "pareto": "Quality against parameters, MACs and latency, for all sizes cut from this search",
}


def write_card(
    report: Report,
    config_yaml: str,
    folder: Path,
    *,
    base_model: str | None = None,
    origin: Origin = UNKNOWN,
    repo_id: str | None = None,
    commit: str | None = None,
) -> Path:
    """Writes `folder/README.md`; needs no network.

    Args:
        report: Report of the run.
        config_yaml: The resolved config.
        folder: Folder of the checkpoint; figures in `folder/figures` are shown.
        base_model: Hub name of the dense model; None takes the report's where that looks like one.
        origin: What the dense model's card says that holds for this one.
        repo_id: Hub name that the checkpoint gets, where it is known.
        commit: Commit of the repository whose code is loaded, where it is known.

    Raises:
        ValueError: If the config is not one, or the report names an unknown task.
    """
    settings = check(parse_yaml(config_yaml, "the config of the run"))
    base = base_model if base_model and is_repo_id(base_model) else hub_model(report.model)
    name = _name((repo_id or f"{last_part(report.model)}-pruned").split("/")[-1])
    shown = public_config(config_yaml)
    content = _content(report, settings, base) | {"config": fenced(shown.strip(), "yaml")}
    content |= {"name": text(name), "checkpoint": json.dumps(repo_id or "path/to/this/folder"), "commit": commit}
    content |= {"shortened": shown != config_yaml, "figures": _figures(folder)}
    data = _metadata(report, settings, base, origin, name)
    path = RunFolder(folder).card
    ModelCard.from_template(data, template_path=str(TEMPLATE), **content).save(path)
    return path


def write_overview(reports: Sequence[Report], folder: Path) -> Path:
    """Writes the `folder/README.md` of a run with several sizes: a table that leads to their folders.

    Args:
        reports: One a size, of the same search.
        folder: Root of the run, which holds a folder for each size, and `figures`.
    """
    figures = "\n".join(f"![{alt}]({path})" for alt, path in _figures(folder))
    path, name = RunFolder(folder).card, text(last_part(reports[0].model), LONGEST_NAME)
    first = text(needed("per_layer", reports[0].architecture))
    path.write_text(
        f"# {name}: {len(reports)} sizes from one search\n\n{sizes_table(reports)}\n\n"
        "Each folder is a checkpoint with a model card of its own. Layouts other than uniform load "
        f"{first}.\n\n{figures}\n"
    )
    return path


def _metadata(report: Report, settings: PruneConfig, base: str | None, origin: Origin, name: str) -> ModelCardData:
    """Gives the block of YAML that a card begins with, which the Hub reads.

    A data set is named there where the model was trained on it: so the Hub understands it, and calibration is none. Of
    the relations to a base model that the Hub knows, finetune is the one of other weights of the same kind.
    """
    dataset = hub_dataset(settings) if report.recovery else None
    tags = [*TAGS[:-1], POLICY_TAG, TAGS[-1]] if report.search.policy else list(TAGS)
    relation: dict[str, Any] = {"base_model_relation": "finetune"} if base else {}
    return ModelCardData(
        base_model=base,
        language=list(origin.language) or None,
        license=origin.license,
        license_name=origin.license_name,
        license_link=origin.license_link,
        library_name=TASKS.get(report.task).library,
        pipeline_tag=TASKS.get(report.task).pipeline_tag,
        tags=[*TASKS.get(report.task).tags, *tags],
        datasets=[dataset] if dataset else None,
        metrics=list(map(_name, report.after.metrics)),
        model_name=name,
        eval_results=_eval_results(report, settings),
        **relation,
    )


def _eval_results(report: Report, settings: PruneConfig) -> list[EvalResult] | None:
    """Gives one for every finite metric of the pruned model on the test split."""
    source, dataset = settings.task.dataset, hub_dataset(settings)
    results = [
        EvalResult(
            task_type=TASKS.get(report.task).pipeline_tag or report.task,
            dataset_type=dataset or "local",
            dataset_name=_name(" ".join(filter(None, [dataset, source.name])) if dataset else _dataset_name(settings)),
            dataset_config=_name(source.name) if dataset and source.name else None,
            dataset_split=_name(settings.task.splits.test),
            dataset_revision=_name(source.revision) if dataset and source.revision else None,
            metric_type=_name(metric),
            metric_value=float(value),
        )
        for metric, value in report.after.metrics.items()
        if math.isfinite(value)
    ]
    return results or None


def _content(report: Report, settings: PruneConfig, base: str | None) -> dict[str, Any]:
    """Gives what the template shows, apart from names and the config."""
    splits, dataset, task = settings.task.splits, _dataset_link(settings), TASKS.get(report.task)
    return {
        "report": report,
        "library": task.library,
        "auto_class": task.auto_class,
        "processor_class": task.processor_class,
        "own_processor": task.processor_class in OWN_PROCESSORS,
        "model_type": code(report.architecture),
        "of_plugin": not is_known(report.architecture),
        "processor": kind_of_processor(task.processor_class).split()[-1] if task.processor_class else None,
        "summary": _summary(report, base),
        "results": results_table(report),
        "latency": report.after.latency_ms is not None,
        "has_loss": task.has_loss,
        "loss_name": task.loss_name,
        "dataset": dataset,
        "test_split": code(splits.test),
        "main_metric": text(report.main_metric),
        "layout": code(report.layout),
        "device": code(report.device),
        "certificate": text(report.certificate()),
        "against_random": text(report.against_random()),
        "calibration": _calibration(settings),
        "by_bandit": bool(report.search.policy),
        "verdict": _verdict(report),
        "vocabulary": text(without_paths(str(report.vocabulary or ""))),
        "reason": text(without_paths(report.layout_reason)),
        "sizes": kept_table(report.kept),
        "places": places_table(report.places) if report.places else "",
        "facts": _facts(report, settings, base),
        "warnings": [text(without_paths(warning)) for warning in report.warnings],
    }


def _summary(report: Report, base: str | None) -> str:
    """Says in a sentence what was removed of which model, and what chose it."""
    cut = {kind: any(kept < dense for kept, dense in report.kept.get(kind, {}).values()) for kind in KINDS}
    kinds = [UNITS[kind] for kind in KINDS if cut[kind]]
    return (
        f"This is {_model_link(report, base)} with {report.removed_fraction():.0%} of its FFN and attention "
        f"parameters removed ({report.after.parameters:,} of {report.before.parameters:,} are left in all): "
        f"whole {' and '.join(kinds) or 'units'}, picked by {_chooser(report.search)} with hf_mabprune."
    )


def _chooser(search: SearchFigures) -> str:
    """Says what chose the arms that went: a policy that pulled them, or without one a criterion."""
    return "a multi-armed bandit" if search.policy else f"the criterion {code(_criterion(search).get('name'))}"


def _verdict(report: Report) -> str:
    """Says what the comparison with the random draws shows, good or bad."""
    if not report.random:
        return "There is no comparison with random draws, so nothing here says that the search earned its cost."
    draws, name = len(report.random), text(report.main_metric)
    better, certain = report.better_than_draws()
    lower = sum(report.after.loss < draw.figures.loss for draw in report.random)
    found = f"Against random draws: better {name} than {better} of {draws}, lower loss than {lower} of {draws}."
    if min(better, lower) < draws:
        return f"{found} The search is not shown to beat chance here."
    if certain < draws:
        return f"{found} The 95% interval of the difference from a draw holds 0, so that difference may be chance."
    return found


def _facts(report: Report, settings: PruneConfig, base: str | None) -> list[tuple[str, str]]:
    """Gives the rows of "How it was made"."""
    search = report.search
    difference = report.reload.get("max_logit_difference")
    facts = [
        ("made from", _source(report, settings, base)),
        ("architecture, task", f"{code(report.architecture)}, {code(report.task)}"),
        ("target, fraction removed" if not report.reached else "target", _pairs(report.target)),
        *([("what it came to", text(str(report.reached)))] if report.reached else []),
        *([("what is promised", text(str(report.promise)))] if report.promise else []),
        *_choosers(search),
        ("reward", code(search.reward)),
        ("search", f"{search.arms:,} arms, {search.pulls:,} pulls in {_count(len(search.rounds), 'round')}"),
        ("cost", _cost(report)),
        ("stopped because", text(without_paths(search.stopped_because))),
        ("calibration data", _calibration(settings)),
        ("seed", str(report.seed)),
        ("versions", text(", ".join(f"{package} {version}" for package, version in report.versions.items()))),
    ]
    if difference is not None:
        facts.append(("checkpoint read back", f"logits differ by at most {difference:.2g} from the model in memory"))
    return facts


def _source(report: Report, settings: PruneConfig, base: str | None) -> str:
    """Says which model it was made from, and how that was read."""
    model, parts = settings.model, [_model_link(report, base)]
    if base and model.revision:
        parts.append(f"revision {code(model.revision)}")
    if model.gguf_file:
        parts.append(f"file {code(last_part(model.gguf_file))}")
    if model.dequantize:
        parts.append("whose quantised weights were dequantised first")
    return ", ".join(parts)


def _choosers(search: SearchFigures) -> list[tuple[str, str]]:
    """Gives the rows that name what chose the arms: policy, criterion, removal rule, as far as there are any."""
    choosers = {"policy": search.policy, "criterion": _criterion(search), "removal rule": search.rule}
    return [(heading, _pairs(values)) for heading, values in choosers.items() if values]


def _criterion(search: SearchFigures) -> dict[str, Any]:
    """Gives name and options of the criterion that chose alone; nothing where there was none."""
    return {"name": search.criterion} if isinstance(search.criterion, str) else search.criterion or {}


def _cost(report: Report) -> str:
    """Says how much was computed for the search, in how long and where."""
    search = report.search
    processes = _count(search.processes, "process", "processes")
    backward = f" and {search.backward_tokens:,} backward" if search.backward_tokens else ""
    unit = "tokens" if report.sequence_length else "examples"
    passes = f"{search.forward_tokens:,} forward{backward} {unit}"
    return f"{passes}, {search.seconds:,.1f} s on {processes} ({code(report.device)})"


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"1 {one}" if number == 1 else f"{number:,} {many or one + 's'}"


def _pairs(values: dict[str, Any]) -> str:
    return ", ".join(f"{text(key)} {code(without_paths(str(value)))}" for key, value in values.items())


def _figures(folder: Path) -> list[tuple[str, str]]:
    """Gives (alternative text, path from the card) of the figures that are there."""
    figures = RunFolder(folder).figures
    paths = {name: figures / f"{name}.png" for name in FIGURES}
    return [(FIGURES[name], path.relative_to(folder).as_posix()) for name, path in paths.items() if path.is_file()]


def _model_link(report: Report, base: str | None) -> str:
    return f"[{text(base)}](https://huggingface.co/{quote(base)})" if base else code(last_part(report.model))


def _dataset_name(settings: PruneConfig) -> str:
    """Says what data that are not on the Hub are called."""
    path = settings.task.dataset.path
    if path == "in-memory":
        return "data given in Python"
    if path == SAMPLE_TEXT:
        return "a sample of WikiText-2, CC BY-SA 3.0"
    return f"local {path} files" if path in NOT_ON_THE_HUB else last_part(path)


def _calibration(settings: PruneConfig) -> str:
    """Says what arms are judged and refits are made on."""
    task = settings.task
    return (
        f"{code(task.splits.calibration)} of {_dataset_link(settings)}, at most {task.calibration_examples:,} examples"
    )


def _dataset_link(settings: PruneConfig) -> str:
    dataset, name = hub_dataset(settings), settings.task.dataset.name
    if dataset is None:
        return text(_dataset_name(settings))
    link = f"[{text(dataset)}](https://huggingface.co/datasets/{quote(dataset)})"
    return f"{link} ({code(name)})" if name else link


def _name(given: str) -> str:
    """Gives a name as the block of YAML holds it: one line of signs that can be seen, not too long."""
    return beginning(one_line(given), LONGEST_NAME) or "unnamed"
