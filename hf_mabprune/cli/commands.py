"""The `mabprune` commands. Scripts and `python -m hf_mabprune` call the same functions."""

import argparse
import json
import re
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from hf_mabprune.architectures import ARCHITECTURES
from hf_mabprune.architectures.shown import read_results
from hf_mabprune.artifacts.publish import push_checkpoint
from hf_mabprune.artifacts.remade import against_base
from hf_mabprune.artifacts.run_folder import RunFolder
from hf_mabprune.artifacts.stored import evaluate_checkpoint
from hf_mabprune.artifacts.verification import verify as verify_run
from hf_mabprune.carry import carry_adapter
from hf_mabprune.cli.families import all_families, families_json, one_family
from hf_mabprune.cli.guard import Failure, guarded
from hf_mabprune.cli.settings import (
    CUT,
    PLUGIN_HELP,
    Arguments,
    as_file,
    config_files,
    parse_settings,
    read_run_config,
    read_settings,
    read_yaml,
)
from hf_mabprune.config import EvaluateConfig, PruneConfig, SparsifyConfig, Strict, check, check_as
from hf_mabprune.evaluation.report import figures_table
from hf_mabprune.export import Comparison, export_checkpoint
from hf_mabprune.exports import EXPORTS
from hf_mabprune.pipeline import prune_from_config, publish_finished
from hf_mabprune.preview import plan_run
from hf_mabprune.recut import cut_run
from hf_mabprune.report_page import SHOWN, write_page
from hf_mabprune.runtime.resume import is_finished
from hf_mabprune.sparse_checkpoint import sparsify_checkpoint
from hf_mabprune.sparsity.scores import CRITERIA as SPARSITY_CRITERIA
from hf_mabprune.sparsity.scores import KINDS

# How the model of a config is stored says nothing of another that is given in its place.
AS_ANY_OTHER = {"revision": None, "dequantize": False, "gguf_file": None}

Settings = TypeVar("Settings", bound=Strict)


def main(arguments: Arguments | None = None) -> int:
    """Runs `mabprune COMMAND ...`; one line and exit code 2 for what the user can mend."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = _Parser(
        "mabprune",
        description="Prune Hugging Face Transformers with bandits.",
        epilog="\n".join([*(f"  {command.__doc__}" for command in COMMANDS.values()), "", PLUGIN_HELP]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS, help="what to do; COMMAND --help explains its settings")
    return guarded(lambda given: COMMANDS[parser.parse_args(given[:1]).command](given[1:]), arguments)


def prune(arguments: Arguments) -> str:
    """prune --config run.yaml [--dotted.key value ...] [--resume]: makes a model smaller"""
    arguments, resume = _without(arguments, "--resume")
    settings = read_settings(arguments)
    paths = RunFolder(settings.output.dir).under_way
    if resume and is_finished(settings, paths):
        if not paths.unpublished.exists():
            return f"finished already: {settings.output.dir}\n"
        publish_finished(settings)
        return f"pushed: {settings.output.dir} to {settings.output.push_to_hub}\n"
    return prune_from_config(settings, resume, config_files(arguments)).summary(settings.output.dir)


def plan(arguments: Arguments) -> str:
    """plan --config run.yaml [--dotted.key value ...]: arms, layouts, targets, time and memory of a run; no pulls"""
    return f"{plan_run(read_settings(arguments))}\n"


def cut(arguments: Arguments) -> str:
    """cut RUN --target.parameters 0.5 [--output.dir DIR]: other sizes from a finished search; no pulls"""
    parser = _parser_with("cut", "run", "folder that a run left behind", "--target.parameters 0.5 --output.dir DIR")
    known, rest = parser.parse_known_args(list(arguments))
    rest = [re.sub("^--target", "--prune.target", word) for word in rest]
    with as_file(read_run_config(known.run)) as base:
        settings = read_settings(["--config", base, *rest])
    if settings.output.dir.endswith(CUT):
        smallest = settings.prune.target.sizes()[-1]
        place = f"{settings.output.dir.removesuffix(CUT)}-{smallest.name()}"
        output = settings.output.model_copy(update={"dir": place})
        settings = settings.model_copy(update={"output": output})
    return cut_run(known.run, settings).summary(settings.output.dir)


def evaluate(arguments: Arguments) -> str:
    """evaluate CHECKPOINT [--config run.yaml] [--task.key value ...] [--json]: quality, size, MACs and latency"""
    parser = _parser_with("evaluate", "checkpoint", "folder or Hub name of a model", "--task.batch_size 8")
    parser.add_argument("--config", help="YAML file that names the data; the checkpoint's own when left out")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    known, rest = parser.parse_known_args(list(arguments))
    config = read_yaml(known.config) if known.config else read_run_config(known.checkpoint)
    task, figures = evaluate_checkpoint(_measured_on(known.checkpoint, config, rest))
    return f"{json.dumps(asdict(figures), indent=2) if known.json else figures_table(task.main_metric, figures)}\n"


def push(arguments: Arguments) -> str:
    """push CHECKPOINT REPO_ID [--private] [--revision BRANCH]: publishes a checkpoint with its card and figures"""
    parser = _parser_with("push", "checkpoint", "folder of the checkpoint")
    parser.add_argument("repo_id", help="name on the Hub, owner/name")
    parser.add_argument("--private", action="store_true", default=None, help="make a new repository private")
    parser.add_argument("--revision", help="branch to push to")
    parser.add_argument("--license", help="license of the base model; read from its card when left out")
    parser.add_argument("--base_model", help="Hub name of the base model; the report's when left out")
    options = vars(parser.parse_args(list(arguments)))
    return f"{push_checkpoint(options.pop('checkpoint'), options.pop('repo_id'), **options)}\n"


def export(arguments: Arguments) -> str:
    """export CHECKPOINT --to onnx [--output.dir DIR] [--measure]: the model in another format, its outputs compared"""
    parser = _parser_with("export", "checkpoint", "folder or Hub name of a model", "--task.batch_size 8")
    parser.add_argument("--to", required=True, metavar="FORMAT", help=f"one of: {', '.join(EXPORTS.names())}")
    parser.add_argument("--output.dir", dest="output", metavar="DIR", help="new folder; CHECKPOINT-FORMAT if left out")
    measure = (
        "measure quality, bytes and time beside the dense model, in torch and in the format, on a run's test data"
    )
    parser.add_argument("--measure", action="store_true", help=measure)
    parser.add_argument("--dense", help="with --measure: folder or Hub name of the dense model; the run's if left out")
    known, rest = parser.parse_known_args(list(arguments))
    comparison = None
    if (rest or known.dense) and not known.measure:
        raise ValueError(f"{rest[0] if rest else '--dense'} is of use with --measure alone: add that, or leave it out")
    if known.measure:
        config = read_run_config(known.checkpoint)
        dense = known.dense or str(config["model"].get("name"))
        comparison = Comparison(dense, _measured_on(known.checkpoint, config, rest))
    output = Path(known.output or f"{_beside(known.checkpoint)}-{known.to}")
    exported = export_checkpoint(known.checkpoint, known.to, output, comparison)
    table = f"{exported}\n" if comparison else ""
    within = (
        f"{exported.difference:.1%} of their size" if EXPORTS.get(known.to).relative else f"{exported.difference:.1g}"
    )
    return f"{table}exported: {output}, outputs within {within} of the model's\n"


def carry(arguments: Arguments) -> str:
    """carry-adapter RUN ADAPTER --output.dir DIR [--task.key value ...]: a LoRA of the dense model, cut to fit"""
    parser = _parser_with("carry-adapter", "run", "folder that a run left behind", "--task.dataset.path parquet")
    parser.add_argument("adapter", help="folder or Hub name of a LoRA of the dense model")
    parser.add_argument("--output.dir", dest="output", metavar="DIR", required=True, help="new folder")
    parser.add_argument("--dense", help="folder or Hub name of the dense model; the run's when left out")
    alone = "read no data: no refit of the LoRA, and nothing is measured"
    parser.add_argument("--slice", action="store_true", help=alone)
    known, rest = parser.parse_known_args(list(arguments))
    with as_file(read_run_config(known.run)) as own:
        settings = read_settings(["--config", own, *rest])
    carried = carry_adapter(known.run, known.adapter, known.output, settings, known.dense, known.slice)
    return f"carried over: {known.output}, {carried}\n"


def sparsify(arguments: Arguments) -> str:
    """sparsify CHECKPOINT --rate 0.5 [--kind connection] [--config run.yaml]: zeros in weights, for no smaller file"""
    usage = "--task.batch_size 8, --recovery.epochs 1"
    parser = _parser_with("sparsify", "checkpoint", "folder or Hub name of a model", usage)
    parser.add_argument("--rate", required=True, type=float, help="part of the counted weights that is zero after it")
    parser.add_argument("--kind", default="unstructured", help=f"what goes together, one of: {', '.join(KINDS)}")
    parser.add_argument(
        "--criterion", default="magnitude", help=f"what ranks it, one of: {', '.join(SPARSITY_CRITERIA)}"
    )
    parser.add_argument("--scope", help="where the rate holds: global, module or unit; by kind when left out")
    parser.add_argument(
        "--exclude", action="append", default=[], metavar="NAME", help="module to leave out; again for another"
    )
    parser.add_argument("--head", action="store_true", help="count the last layer, too")
    parser.add_argument("--seed", type=int, help="of everything random; the config's, or 0, when left out")
    parser.add_argument("--config", help="YAML file that names data: for first_order, recovery and measured quality")
    parser.add_argument("--output.dir", dest="output", metavar="DIR", help="new folder; CHECKPOINT-sparse if left out")
    parser.add_argument("--output.overwrite", dest="overwrite", action="store_true", help="replace an earlier output")
    known, rest = parser.parse_known_args(list(arguments))
    data = None
    if known.config or rest:
        config = read_yaml(known.config) if known.config else {}
        config["model"] = {**_mapping(config, "model"), **AS_ANY_OTHER, "name": known.checkpoint}
        if known.seed is not None:
            config["seed"] = known.seed
        data = _settings_of(config, rest, SparsifyConfig)
    report = sparsify_checkpoint(
        known.checkpoint,
        output := Path(known.output or f"{_beside(known.checkpoint)}-sparse"),
        known.rate,
        **{name: getattr(known, name) for name in ("kind", "criterion", "scope", "exclude", "head", "overwrite")},
        seed=data.seed if data else known.seed or 0,
        data=data,
    )
    return report.summary(output)


def verify(arguments: Arguments) -> str:
    """verify FOLDER [--base MODEL] [--task.key value ...] [--json]: whether a checkpoint is what its run wrote"""
    parser = _parser_with("verify", "folder", "folder that a run left behind", "--task.dataset.path parquet")
    parser.add_argument("--base", help="folder or Hub name of the model it was made from: makes it again and compares")
    parser.add_argument("--json", action="store_true", help="print the outcomes as JSON")
    known, rest = parser.parse_known_args(list(arguments))
    if rest and not known.base:
        raise ValueError(f"{rest[0]} is of use with --base alone: name the model, or leave it out")

    def own(folder: Path) -> PruneConfig:
        return check(read_run_config(str(folder)))

    def with_data(folder: Path) -> PruneConfig:
        with as_file(read_run_config(str(folder))) as settings:
            return read_settings(["--config", settings, *rest])

    checks = verify_run(known.folder, own, against_base(known.base, with_data) if known.base else None)
    lines = [json.dumps([asdict(found) for found in checks], indent=2)] if known.json else [*map(str, checks)]
    text = "".join(f"{line}\n" for line in lines)
    return Failure(text) if any(found.outcome == "FAILED" for found in checks) else text


def report(arguments: Arguments) -> str:
    """report RUN [--output FILE] [--examples N] [--slice COLUMN] [--task.key value ...]: one HTML page of a run"""
    parser = _parser_with("report", "run", "folder that a run left behind", "--task.dataset.path parquet")
    parser.add_argument("--output", metavar="FILE", help="HTML file; RUN.html when left out")
    parser.add_argument(
        "--examples",
        type=int,
        default=SHOWN,
        metavar="N",
        help="test examples that are shown at most, read from the data again; 0: no texts (default: %(default)s)",
    )
    parser.add_argument(
        "--slice",
        action="append",
        default=[],
        metavar="COLUMN",
        help="column of the data by whose values examples are compared, as often as you like; those with 2 to 12 "
        "values that the task does not read, when left out",
    )
    known, rest = parser.parse_known_args(list(arguments))
    with as_file(read_run_config(known.run)) as settings:
        read = read_settings(["--config", settings, *rest])
    return f"page: {write_page(known.run, read, known.output, known.examples, known.slice)}\n"


def families(arguments: Arguments) -> str:
    """families [TYPE] [--json]: what can go of each model type, in which layout; what tests have shown, and why not"""
    parser = _parser_with("families", "model_type", "model type; all when left out", required=False)
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    known = parser.parse_args(list(arguments))
    results = read_results()
    if known.json:
        return families_json([known.model_type] if known.model_type else ARCHITECTURES.names(), results)
    return one_family(known.model_type, results) if known.model_type else all_families(results)


COMMANDS: dict[str, Callable[[Arguments], str]] = {
    "prune": prune,
    "plan": plan,
    "cut": cut,
    "evaluate": evaluate,
    "push": push,
    "export": export,
    "carry-adapter": carry,
    "sparsify": sparsify,
    "verify": verify,
    "report": report,
    "families": families,
}


class _Parser(argparse.ArgumentParser):
    """A parser whose refusals are one line, like every other."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; {self.prog} --help explains the command")


def _parser_with(
    command: str, first: str, text: str, usage: str = "", required: bool = True
) -> argparse.ArgumentParser:
    """Makes the parser of a command that starts from a folder, or another first word."""
    description = (COMMANDS[command].__doc__ or "").partition(": ")[2]
    settings = f"Further settings are those of `mabprune prune --help`, e.g. {usage}. " if usage else ""
    parser = _Parser(f"mabprune {command}", description=description, epilog=settings + PLUGIN_HELP, allow_abbrev=False)
    parser.add_argument(first, nargs=None if required else "?", help=text)
    return parser


def _measured_on(checkpoint: str, config: dict[str, Any], options: Arguments) -> EvaluateConfig:
    """Makes settings that measure a checkpoint on the data of a config."""
    config = {**config, "model": {**_mapping(config, "model"), **AS_ANY_OTHER, "name": checkpoint}}
    return _settings_of(config, options, EvaluateConfig)


def _settings_of(config: dict[str, Any], options: Arguments, kind: type[Settings]) -> Settings:
    """Reads settings of a kind from what a config of a run has of them, then from options."""
    with as_file({key: config[key] for key in kind.model_fields if key in config}) as base:
        return check_as(parse_settings(["--config", base, *options], kind), kind)


def _mapping(config: dict[str, Any], part: str) -> dict[str, Any]:
    """Gives a part of a config, empty where it is missing; refuses what is no mapping."""
    if not isinstance(found := config.get(part, {}), dict):
        raise ValueError(f"{part} must be a mapping, got {found}")
    return found


def _beside(checkpoint: str) -> Path:
    """Gives the path that the name of an output begins with: beside a folder, or here for a name on the Hub, which has
    an owner before it."""
    return Path(checkpoint) if Path(checkpoint).exists() else Path(Path(checkpoint).name)


def _without(arguments: Arguments, flag: str) -> tuple[list[str], bool]:
    """Gives the arguments without a flag, and whether it was there."""
    return [word for word in arguments if word != flag], flag in arguments
