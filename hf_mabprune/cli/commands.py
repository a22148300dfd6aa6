"""The `mabprune` commands. Scripts and `python -m hf_mabprune` call the same functions."""

import argparse
import json
import os
import re
import sys
import tempfile
import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jsonargparse
import transformers
import yaml
from datasets.utils import disable_progress_bars
from datasets.utils import logging as datasets_logging

from hf_mabprune.artifacts.publish import push_checkpoint
from hf_mabprune.artifacts.run_folder import DETAILS
from hf_mabprune.config import EvaluateConfig, PruneConfig, Strict, check, check_as, known_types
from hf_mabprune.evaluation.report import figures_table
from hf_mabprune.pipeline import cut_run, evaluate_checkpoint, prune_from_config
from hf_mabprune.policies import POLICIES, Policy
from hf_mabprune.preview import plan_run
from hf_mabprune.registry import describe_options, nearest
from hf_mabprune.runtime.resume import Interrupted, is_finished
from hf_mabprune.tasks.base import TASKS

USER_ERRORS = (ValueError, OSError)
POLICY = "--search.policy."
TARGET = "--prune.target."
COUNTED = {"neurons", "heads"}
Arguments = Sequence[str]


def main(arguments: Arguments | None = None) -> int:
    """`mabprune COMMAND ...`: one line and exit code 2 for what the user can mend."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(
        "mabprune",
        description="Prune Hugging Face Transformers with bandits.",
        epilog="\n".join(f"  {command.__doc__}" for command in COMMANDS.values()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS, help="what to do; COMMAND --help explains its settings")
    return _guarded(COMMANDS[parser.parse_args(arguments[:1]).command], arguments[1:])


def _guarded(command: Callable[[Arguments], str], arguments: Arguments) -> int:
    """Runs a command and prints what it says, or what is wrong, on the main process alone."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    disable_progress_bars()
    datasets_logging.set_verbosity(datasets_logging.CRITICAL)  # it prints what it raises
    speaks = os.environ.get("RANK", "0") == "0"
    warnings.formatwarning = lambda message, *_: f"mabprune: warning: {message}\n" if speaks else ""
    try:
        said, code = command(arguments), 0
    except Interrupted as stop:
        said, code = _one_line(f"{stop}; go on with: {stop.resume}" if stop.resume else str(stop)), 128 + stop.number
    except USER_ERRORS as error:
        said, code = _one_line(str(error)), 2
    if speaks:
        (sys.stderr if code else sys.stdout).write(said)
    return code


def _one_line(message: str) -> str:
    lines = (line.strip() for line in message.splitlines())
    return f"mabprune: {'; '.join(filter(None, lines))}\n"


def prune(arguments: Arguments) -> str:
    """prune --config run.yaml [--dotted.key value ...] [--resume]: makes a model smaller"""
    arguments, resume = _without(arguments, "--resume")
    settings = read_settings(arguments)
    if resume and is_finished(settings):
        return f"finished already: {settings.output.dir}\n"
    return prune_from_config(settings, resume, config_files(arguments)).summary(settings.output.dir)


def plan(arguments: Arguments) -> str:
    """plan --config run.yaml [--dotted.key value ...]: arms, layouts, targets, time and memory of a run; no pulls"""
    return f"{plan_run(read_settings(arguments))}\n"


def cut(arguments: Arguments) -> str:
    """cut RUN --target.parameters 0.5 [--output.dir DIR]: other sizes from a finished search; no pulls"""
    parser = _parser_with("cut", "run", "folder that a run left behind", "--target.parameters 0.5 --output.dir DIR")
    known, rest = parser.parse_known_args(list(arguments))
    rest = [re.sub("^--target", "--prune.target", word) for word in rest]
    with _as_file(read_run_config(known.run)) as base:
        settings = read_settings(["--config", base, *rest])
    if not settings.output.dir:
        smallest = settings.prune.target.sizes()[-1]
        output = settings.output.model_copy(update={"dir": f"{known.run.rstrip('/')}-{smallest.name()}"})
        settings = settings.model_copy(update={"output": output})
    return cut_run(known.run, settings).summary(settings.output.dir)


def evaluate(arguments: Arguments) -> str:
    """evaluate CHECKPOINT [--config run.yaml] [--task.key value ...] [--json]: quality, size, MACs and latency"""
    parser = _parser_with("evaluate", "checkpoint", "folder or Hub name of a model", "--task.batch_size 8")
    parser.add_argument("--config", help="YAML file that names the data; the checkpoint's own when left out")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    known, rest = parser.parse_known_args(list(arguments))
    config = read_yaml(known.config) if known.config else read_run_config(known.checkpoint)
    if not isinstance(config.get("model", {}), dict):
        raise ValueError(f"model must be a mapping, got {config['model']}")
    config["model"] = {**config.get("model", {}), "name": known.checkpoint, "revision": None}
    with _as_file({key: config[key] for key in EvaluateConfig.model_fields if key in config}) as base:
        settings = check_as(_parse(["--config", base, *rest], EvaluateConfig), EvaluateConfig)
    task, figures = evaluate_checkpoint(settings)
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


COMMANDS: dict[str, Callable[[Arguments], str]] = {
    "prune": prune,
    "plan": plan,
    "cut": cut,
    "evaluate": evaluate,
    "push": push,
}


def _parser_with(command: str, folder: str, text: str, usage: str = "") -> argparse.ArgumentParser:
    """A parser for a command that starts from a folder."""
    description = (COMMANDS[command].__doc__ or "").partition(": ")[2]
    epilog = f"Further settings are those of `mabprune prune --help`, e.g. {usage}" if usage else None
    parser = argparse.ArgumentParser(f"mabprune {command}", description=description, epilog=epilog, allow_abbrev=False)
    parser.add_argument(folder, help=text)
    return parser


def _without(arguments: Arguments, flag: str) -> tuple[list[str], bool]:
    """The arguments without a flag, and whether it was there."""
    return [word for word in arguments if word != flag], flag in arguments


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML file that holds a mapping.

    Raises:
        ValueError: If it does not.
        OSError: If it cannot be read.
    """
    try:
        content = yaml.safe_load(Path(path).read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a mapping, got {type(content).__name__}")
    return content


def read_run_config(folder: str) -> dict[str, Any]:
    """The config that a run saved with its checkpoint, as data: its maker decides nothing that is run or written.

    Whether code is run, metrics from elsewhere are loaded, or anything is written beside the output, is only for the
    command line to say; what the folder says of it is left out, with a warning where it says something.

    Raises:
        ValueError: If the folder holds no such config.
    """
    path = Path(folder) / DETAILS / "config.yaml"
    if not path.is_file():
        raise ValueError(f"{folder} holds no {DETAILS}/config.yaml, so it is no run's output: name data with --config")
    config = read_yaml(path)
    for part in ("model", "task", "output"):
        if not isinstance(config.get(part), dict):
            raise ValueError(f"{path} must have a part '{part}': it is not of a run")
    if config["model"].pop("trust_remote_code", False):
        warnings.warn(f"{path} asks for remote code, which only --model.trust_remote_code can allow", stacklevel=2)
    if config["task"].pop("metrics", None):
        warnings.warn(f"{path} names metrics, which only --task.metrics can choose", stacklevel=2)
    draws = {name: value for name, value in config["output"].items() if name == "random_seeds"}
    return {**config, "output": {"dir": "", **draws}}


@contextmanager
def _as_file(config: dict[str, Any]) -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        path.write_text(yaml.safe_dump(config))
        yield str(path)


def read_settings(arguments: Arguments) -> PruneConfig:
    """The config of a command line: YAML files, then dotted overrides, then every check.

    Another `--search.policy.name` than the file's starts from that policy's defaults, for the file's options belong to
    its own policy. A `--prune.target.x` takes the place of the file's target, unless both are of neurons and heads.

    Raises:
        ValueError: What is wrong, one line a fault.
    """
    given = _parse(arguments)
    options, rest = _split(arguments, POLICY)
    if "name" in options and given["search"]["policy"]["name"] != _parse(rest)["search"]["policy"].get("name"):
        given["search"]["policy"] = {name: given["search"]["policy"][name] for name in options}
    targets, _ = _split(arguments, TARGET)
    if targets and not {*targets} <= COUNTED:
        given["prune"]["target"] = {name: given["prune"]["target"][name] for name in targets}
    elif targets:
        given["prune"]["target"] = {name: given["prune"]["target"].get(name) for name in COUNTED}
    return check(given)


def _parse(arguments: Arguments, kind: type[Strict] = PruneConfig) -> dict[str, Any]:
    """Files and overrides merged, as a nested dict."""
    try:
        given = settings_parser(kind).parse_args(list(arguments)).as_dict()
    except jsonargparse.ArgumentError as error:
        raise ValueError(_explain(str(error))) from None
    return {name: part for name, part in given.items() if name not in ("config", "resume")}


def config_files(arguments: Arguments) -> list[str]:
    """The files that --config names on a command line."""
    given = zip(arguments, [*arguments[1:], ""], strict=True)
    return [word.partition("=")[2] or after for word, after in given if re.match("--config(=|$)", word)]


def _split(arguments: Arguments, prefix: str) -> tuple[list[str], list[str]]:
    """Names of the options with a prefix on a command line, and the command line without them."""
    options, rest, tokens = [], [], iter(arguments)
    for token in tokens:
        if token.startswith(prefix):
            name, equals, _ = token.removeprefix(prefix).partition("=")
            options.append(name.partition(".")[0])
            if not equals:
                next(tokens, None)
        else:
            rest.append(token)
    return options, rest


class HelpFormatter(jsonargparse.DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Says in words what a setting may hold."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = super()._get_help_string(action) or ""
        return text.replace("type: %(type)s", known_types(PruneConfig).get(action.dest, "%(type)s"))


def settings_parser(kind: type[Strict] = PruneConfig) -> jsonargparse.ArgumentParser:
    """The parser whose --help explains every field of the config."""
    parser = jsonargparse.ArgumentParser(
        prog="mabprune prune",
        description="Prunes a Hugging Face model and writes a smaller checkpoint. Settings come from\n"
        "--config, a YAML file, and dotted options override it:\n"
        "--search.policy.name exp3 --prune.target.neurons 0.5",
        epilog=_components(),
        exit_on_error=False,
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", action="config", help="YAML file with any of the settings below")
    if kind is PruneConfig:
        parser.add_argument("--resume", action="store_true", help="go on with a run that was interrupted")
    parser.add_class_arguments(kind)
    return parser


def _components() -> str:
    shared = describe_options(Policy)
    lines = [f"tasks (task.type): {', '.join(TASKS.names())}", "", "policies (search.policy) and their options:"]
    for name in POLICIES.names():
        own = [option for option in describe_options(POLICIES.get(name)) if option not in shared]
        lines += [f"  {name}", *map(_option_line, own)]
    return "\n".join([*lines, "  every policy", *map(_option_line, shared)])


def _option_line(option: tuple[str, Any, str]) -> str:
    name, default, text = option
    return textwrap.fill(
        f"{name}: {text} (default: {default})", width=79, initial_indent=" " * 6, subsequent_indent=" " * 10
    )


def _explain(message: str) -> str:
    """jsonargparse's message as one line, with the nearest known key for an unknown one."""
    unknown = (
        re.search(r"Group '(?P<group>[^']*)' does not accept option '(?P<key>[^']*)'", message)
        or re.search(r"Option '(?P<key>[^']*)' is not accepted", message)
        or re.search(r"unrecognized arguments: --(?P<key>[^ =]*)", message)
    )
    if unknown:
        parts = unknown.groupdict()
        key = ".".join(filter(None, (parts.get("group"), parts["key"])))
        known = known_types(PruneConfig)
        while "." in key and key.rpartition(".")[0] not in known:
            key = key.rpartition(".")[0]
        return f"unknown key '{key}'.{nearest(key, [*known, *(path.rpartition('.')[2] for path in known)])}"
    if message.startswith("Unexpected config"):
        given = " ".join(message.partition(":")[2].split())
        return f"the file of --config must hold a mapping of settings, got {given or 'an empty file'}"
    wrong = re.search(r'Parser key "(?P<key>[^"]*)":(?P<rest>.*)', message, re.DOTALL)
    if wrong:
        broken = re.search("Value error, (.*?)(?: \\[type=|$)", wrong["rest"], re.MULTILINE)
        given = "(?:(?:Got|Given) value: |Unable to load config ['\"])(.*?)(?:['\"] - |$)"
        value = re.search(given, wrong["rest"], re.MULTILINE)
        if broken or wrong["key"] not in known_types(PruneConfig) or not value:
            return f"{wrong['key']}: {broken[1] if broken else ' '.join(wrong['rest'].split())}"
        return f"{wrong['key']} must be {known_types(PruneConfig)[wrong['key']]}, got {value[1]}"
    return " ".join(message.split())

