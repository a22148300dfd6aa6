"""The model card of a run: README.md of the checkpoint, a view of the report.

Cards are made to be published, so local paths are cut to their last part, and URLs lose credentials and queries.
"""

import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import transformers
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from hf_mabprune.arms import KINDS
from hf_mabprune.config import PruneConfig, check
from hf_mabprune.evaluation.report import ModelFigures, Report
from hf_mabprune.tasks.base import TASKS

TEMPLATE = Path(__file__).with_name("card_template.md")
TAGS = ["pruned", "structured-pruning", "multi-armed-bandit", "hf_mabprune"]
PIPELINE_TAGS = {
    "AutoModelForSequenceClassification": "text-classification",
    "AutoModelForCausalLM": "text-generation",
    "AutoModelForMultipleChoice": "multiple-choice",
}
NOT_ON_THE_HUB = {"parquet", "json", "csv", "text", "arrow", "in-memory"}  # loaders, and data handed over in Python
UNITS = {"neuron": "FFN neurons", "head": "attention heads"}
FIGURES = {
    "kept_widths": "FFN neurons and attention heads kept in each layer",
    "effects": "Effects of removed and of kept arms",
    "search": "KL divergence and loss over the rounds of the search",
    "pareto": "Quality against parameters, MACs and latency, for all sizes cut from this search",
}
LONG_TABLE = 16  # layers; longer tables are folded away
ABSOLUTE = re.compile(r"(?<![\w:/\\.~<-])(?:~|[A-Za-z]:|\.{1,2}|file:/{2})?(?:[/\\]+[\w.@+~-]+)+[/\\]?")


def write_card(
    report: Report,
    config_yaml: str,
    folder: Path,
    *,
    base_model: str | None = None,
    license: str | None = None,
    repo_id: str | None = None,
) -> Path:
    """Writes `folder/README.md`; needs no network.

    Args:
        report: Of the run.
        config_yaml: The resolved config.
        folder: Of the checkpoint; figures in `folder/figures` are shown.
        base_model: Hub name of the dense model; None takes the report's where that looks like one.
        license: Identifier of the dense model's license, e.g. "apache-2.0"; None leaves it out.
        repo_id: Hub name that the checkpoint gets, where it is known.

    Raises:
        ValueError: If the config is not one, or the report names an unknown task.
    """
    settings = check(yaml.safe_load(config_yaml))
    base = base_model if base_model and _is_repo_id(base_model) else hub_model(report.model)
    name = (repo_id or f"{_last_part(report.model)}-pruned").split("/")[-1]
    shown = public_config(config_yaml)
    content = _content(report, settings, base) | {"config": shown.strip(), "shortened": shown != config_yaml}
    content |= {"name": name, "checkpoint": repo_id or "path/to/this/folder", "figures": _figures(folder)}
    data = _metadata(report, settings, base, license, name)
    path = folder / "README.md"
    ModelCard.from_template(data, template_path=str(TEMPLATE), **content).save(path)
    return path


def public_config(config_yaml: str) -> str:
    """The config as text that can be published: the same text where it holds no local path."""
    original = yaml.safe_load(config_yaml)
    public = _public(original, files_are_local=_hub_dataset(check(original)) is None)
    return config_yaml if public == original else yaml.safe_dump(public, sort_keys=False)


def public_report(report: Report) -> str:
    """The text of a report.json that can be published: no local paths."""
    named = {"model": _public(report.model, "name"), "dataset": _public(report.dataset, "path")}
    return json.dumps(_texts_without_paths(asdict(report)) | named, indent=2)


def _texts_without_paths(value: Any) -> Any:
    """A copy of nested data in which every text has lost its absolute paths."""
    if isinstance(value, dict):
        return {name: _texts_without_paths(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_texts_without_paths(part) for part in value]
    return _without_paths(value) if isinstance(value, str) else value


def write_overview(reports: Sequence[Report], folder: Path) -> Path:
    """Writes the `folder/README.md` of a run with several sizes: a table that leads to their folders.

    Args:
        reports: One a size, of the same search.
        folder: That holds a folder for each size, and `figures`.
    """
    first = reports[0]
    metric = first.main_metric
    headings = ["size", "layout", "parameters (M)", "MACs (M)", metric, "random, mean", "speed-up", "load"]
    whole = ["dense", "", f"{first.before.parameters / 1e6:,.2f}", f"{first.before.macs / 1e6:,.2f}"]
    rows = [[*whole, _metric(first.before, metric), "", "", ""]]
    for size, report in zip((report.in_short() for report in reports), reports, strict=True):
        rows.append(
            [
                f"[{size.name}]({size.name}/README.md)",
                size.layout,
                f"{size.parameters / 1e6:,.2f}",
                f"{size.macs / 1e6:,.2f}",
                _metric(report.after, metric),
                f"{size.random:.4f}",
                f"{size.speedup:.2f}x" if size.speedup else "",
                f"`{TASKS.get(report.task).auto_class}.from_pretrained(\"{size.name}\")`",
            ]
        )
    figures = "\n".join(f"![{alt}]({path})" for alt, path in _figures(folder))
    path = folder / "README.md"
    path.write_text(
        f"# {_last_part(first.model)}: {len(reports)} sizes from one search\n\n{_table(headings, rows)}\n\n"
        "Each folder is a checkpoint with a model card of its own. Layouts other than uniform load after `import "
        f"hf_mabprune`, or with `trust_remote_code=True`.\n\n{figures}\n"
    )
    return path


def _metadata(
    report: Report, settings: PruneConfig, base: str | None, license: str | None, name: str
) -> ModelCardData:
    dataset = _hub_dataset(settings)
    return ModelCardData(
        base_model=base,
        license=license,
        library_name="transformers",
        pipeline_tag=PIPELINE_TAGS.get(TASKS.get(report.task).auto_class),
        tags=TAGS,
        datasets=[dataset] if dataset else None,
        metrics=list(report.after.metrics),
        model_name=name,
        eval_results=_eval_results(report, settings),
    )


def _eval_results(report: Report, settings: PruneConfig) -> list[EvalResult] | None:
    """One for every finite metric of the pruned model on the test split."""
    source, dataset = settings.task.dataset, _hub_dataset(settings)
    results = [
        EvalResult(
            task_type=PIPELINE_TAGS.get(TASKS.get(report.task).auto_class, report.task),
            dataset_type=dataset or "local",
            dataset_name=" ".join(filter(None, [dataset, source.name])) if dataset else _dataset_name(settings),
            dataset_config=source.name if dataset else None,
            dataset_split=settings.task.splits.test,
            dataset_revision=source.revision if dataset else None,
            metric_type=metric,
            metric_value=float(value),
        )
        for metric, value in report.after.metrics.items()
        if math.isfinite(value)
    ]
    return results or None


def _content(report: Report, settings: PruneConfig, base: str | None) -> dict[str, Any]:
    """What the template shows, apart from names and the config."""
    splits, dataset = settings.task.splits, _dataset_link(settings)
    return {
        "report": report,
        "auto_class": TASKS.get(report.task).auto_class,
        "summary": _summary(report, base),
        "results": _results_table(report),
        "latency": report.after.latency_ms is not None,
        "loss_name": TASKS.get(report.task).loss_name,
        "dataset": dataset,
        "test_split": splits.test,
        "calibration": f"`{splits.calibration}` of {dataset}, at most {settings.task.calibration_examples:,} examples",
        "verdict": _verdict(report),
        "reason": _without_paths(report.layout_reason),
        "sizes": _sizes_table(report.kept),
        "facts": _facts(report, settings, base),
        "warnings": [_without_paths(warning) for warning in report.warnings],
    }


def _summary(report: Report, base: str | None) -> str:
    cut = {kind: any(kept < whole for kept, whole in report.kept.get(kind, {}).values()) for kind in KINDS}
    kinds = [UNITS[kind] for kind in KINDS if cut[kind]]
    return (
        f"This is {_model_link(report, base)} with {report.removed_fraction():.0%} of its FFN and attention "
        f"parameters removed ({report.after.parameters:,} of {report.before.parameters:,} are left in all): "
        f"whole {' and '.join(kinds) or 'units'}, picked by a multi-armed bandit with hf_mabprune."
    )


def _results_table(report: Report) -> str:
    """before | after | every random draw."""
    rows = [("before", report.before), ("**after**", report.after)]
    rows += [(f"random, seed {draw.seed}", draw.figures) for draw in report.random]
    metrics = [report.main_metric, *(name for name in report.after.metrics if name != report.main_metric)]
    headings = ["", "parameters (M)", "MACs (M)", *metrics, "loss", "KL", "latency (ms)", "weights (MB)"]
    return _table(headings, [[name, *_cells(figures, metrics)] for name, figures in rows])


def _cells(figures: ModelFigures, metrics: Sequence[str]) -> list[str]:
    return [
        f"{figures.parameters / 1e6:,.2f}",
        f"{figures.macs / 1e6:,.2f}",
        *(_metric(figures, name) for name in metrics),
        f"{figures.loss:.4f}",
        "" if figures.kl is None else f"{figures.kl:.4f}",
        "" if figures.latency_ms is None else f"{figures.latency_ms:.1f}",
        "" if figures.checkpoint_bytes is None else f"{figures.checkpoint_bytes / 1e6:,.1f}",
    ]


def _metric(figures: ModelFigures, name: str) -> str:
    """The value with its interval, e.g. 0.919 (0.899 to 0.935)."""
    value = figures.metrics[name]
    digits = 4 if abs(value) < 10 else 2
    if name not in figures.intervals:
        return f"{value:.{digits}f}"
    low, high = figures.intervals[name]
    return f"{value:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def _sizes_table(kept: dict[str, dict[int, tuple[int, int]]]) -> str:
    kinds = [kind for kind in KINDS if kept.get(kind)]
    layers = sorted({layer for kind in kinds for layer in kept[kind]})
    rows = [
        [str(layer), *("{:,} of {:,}".format(*kept[kind][layer]) if layer in kept[kind] else "" for kind in kinds)]
        for layer in layers
    ]
    table = _table(["layer", *(UNITS[kind] for kind in kinds)], rows)
    if len(rows) <= LONG_TABLE:
        return table
    return f"<details>\n<summary>{len(rows)} layers</summary>\n\n{table}\n\n</details>"


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown; columns that are empty throughout are left out."""
    rows = list(rows)
    columns = [column for column in range(len(headings)) if any(row[column] for row in rows)]
    lines = [headings, ["---"] + ["---:"] * (len(headings) - 1), *rows]
    return "\n".join("| " + " | ".join(line[column] for column in columns) + " |" for line in lines)


def _verdict(report: Report) -> str:
    """What the comparison with the random draws says, good or bad."""
    if not report.random:
        return "There is no comparison with random draws, so nothing here says that the search earned its cost."
    sign, metric, draws = 1 if report.greater_is_better else -1, report.main_metric, len(report.random)
    after = sign * report.after.metrics[metric]
    better = sum(after > sign * draw.figures.metrics[metric] for draw in report.random)
    lower = sum(report.after.loss < draw.figures.loss for draw in report.random)
    text = f"Against random draws: better {metric} than {better} of {draws}, lower loss than {lower} of {draws}."
    if min(better, lower) < draws:
        return f"{text} The search is not shown to beat chance here."
    if _overlaps(report):
        return f"{text} The {metric} intervals of the model and of a draw overlap, so that difference may be chance."
    return text


def _overlaps(report: Report) -> bool:
    """Whether the main metric's interval meets that of any random draw."""
    low, high = report.after.intervals[report.main_metric]
    others = [draw.figures.intervals[report.main_metric] for draw in report.random]
    return any(low <= other_high and other_low <= high for other_low, other_high in others)


def _facts(report: Report, settings: PruneConfig, base: str | None) -> list[tuple[str, str]]:
    """The rows of "How it was made"."""
    search, revision = report.search, settings.model.revision
    difference = report.reload.get("max_logit_difference")
    facts = [
        ("made from", _model_link(report, base) + (f", revision `{revision}`" if base and revision else "")),
        ("architecture, task", f"`{report.architecture}`, `{report.task}`"),
        ("target, fraction removed", _pairs(report.target)),
        ("policy", _pairs(search.policy)),
        ("reward", f"`{search.reward}`"),
        ("search", f"{search.arms:,} arms, {search.pulls:,} pulls in {_count(len(search.rounds), 'round')}"),
        ("cost", _cost(report)),
        ("stopped because", _without_paths(search.stopped_because)),
        ("seed", str(report.seed)),
        ("versions", ", ".join(f"{package} {version}" for package, version in report.versions.items())),
    ]
    if difference is not None:
        facts.append(("checkpoint read back", f"logits differ by at most {difference:.2g} from the model in memory"))
    return facts


def _cost(report: Report) -> str:
    search = report.search
    processes = _count(search.processes, "process", "processes")
    backward = f" and {search.backward_tokens:,} backward" if search.backward_tokens else ""
    tokens = f"{search.forward_tokens:,} forward{backward} tokens"
    return f"{tokens}, {search.seconds:,.1f} s on {processes} (`{report.device}`)"


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"1 {one}" if number == 1 else f"{number:,} {many or one + 's'}"


def _pairs(values: dict[str, Any]) -> str:
    return ", ".join(f"{key} `{_without_paths(str(value))}`" for key, value in values.items())


def _figures(folder: Path) -> list[tuple[str, str]]:
    """(alternative text, path from the card) of the figures that are there."""
    names = [name for name in FIGURES if (folder / "figures" / f"{name}.png").is_file()]
    return [(FIGURES[name], f"figures/{name}.png") for name in names]


def _public(value: Any, key: str = "", files_are_local: bool = True) -> Any:
    """A copy of a part of the config in which local paths are cut to their last part."""
    if isinstance(value, dict):
        inner = "data_files" if key == "data_files" else None
        return {name: _public(part, inner or name, files_are_local) for name, part in value.items()}
    if isinstance(value, list):
        return [_public(part, key, files_are_local) for part in value]
    if not isinstance(value, str):
        return value
    if "://" in value:
        return public_url(value)
    paths = {"dir", "data_files"} if files_are_local else {"dir"}
    is_local = key in {"name", "path"} and (not _is_repo_id(value) or Path(value).exists())
    return _last_part(value) if key in paths or is_local or _is_absolute(value) else value


def public_url(url: str) -> str:
    """The address without credentials and query; of a local file only the last part."""
    parts = urlsplit(url)
    if parts.scheme == "file":
        return _last_part(url)
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}"


def _is_absolute(text: str) -> bool:
    return re.match(r"[/\\~]|[A-Za-z]:[/\\]|\.{1,2}[/\\]", text) is not None


def _last_part(path: str) -> str:
    return re.split(r"[/\\]+", path.rstrip("/\\"))[-1] or "root"


def _without_paths(text: str) -> str:
    """Free text with every absolute path in it cut to its last part."""
    return ABSOLUTE.sub(lambda match: _last_part(match.group()), text)


def _is_repo_id(name: str) -> bool:
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def hub_model(name: str) -> str | None:
    """The name, where it can be one on the Hub: not a folder, and not the class of a model made in memory."""
    made_in_memory = "/" not in name and hasattr(transformers, name)
    return name if _is_repo_id(name) and not made_in_memory and not Path(name).exists() else None


def _hub_dataset(settings: PruneConfig) -> str | None:
    path = settings.task.dataset.path
    local = path in NOT_ON_THE_HUB or not _is_repo_id(path) or Path(path).exists()
    return None if local else path


def _model_link(report: Report, base: str | None) -> str:
    return f"[{base}](https://huggingface.co/{base})" if base else f"`{_last_part(report.model)}`"


def _dataset_name(settings: PruneConfig) -> str:
    """What data that are not on the Hub are called."""
    path = settings.task.dataset.path
    if path == "in-memory":
        return "data given in Python"
    return f"local {path} files" if path in NOT_ON_THE_HUB else _last_part(path)


def _dataset_link(settings: PruneConfig) -> str:
    dataset, name = _hub_dataset(settings), settings.task.dataset.name
    if dataset is None:
        return _dataset_name(settings)
    return f"[{dataset}](https://huggingface.co/datasets/{dataset})" + (f" (`{name}`)" if name else "")
