"""From a command line to checked settings: YAML files, then dotted overrides; also their help and their faults."""

import argparse
import re
import tempfile
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jsonargparse
import yaml

from hf_mabprune.architectures import ARCHITECTURES
from hf_mabprune.artifacts.run_folder import RunFolder
from hf_mabprune.compensation import COMPENSATIONS
from hf_mabprune.config import PruneConfig, Strict, check, known_types
from hf_mabprune.config.search import RETIRED
from hf_mabprune.criteria import CRITERIA
from hf_mabprune.plugins import load_plugin
from hf_mabprune.policies import POLICIES
from hf_mabprune.registry import Registry, describe_options, nearest
from hf_mabprune.search.rules import RULES
from hf_mabprune.tasks.base import TASKS

COMPONENTS = ("policy", "rule", "criterion")  # parts of the search that have a name and options of their own
REGISTRIES: dict[str, Registry[Any]] = {  # by what their names are, and where they are written
    "model types": ARCHITECTURES,
    "tasks (task.type)": TASKS,
    "policies (search.policy)": POLICIES,
    "removal rules (search.rule)": RULES,
    "criteria (search.criterion)": CRITERIA,
    "compensations (compensation)": COMPENSATIONS,
}
TARGET = "--prune.target."
CUT = "-SIZE"  # ends the name of the folder that a cut of a run is written to, SIZE being the name of the size
COUNTED = {"neurons", "heads", "experts"}
PLUGIN_HELP = (
    "--plugin FILE, as often as you like, first loads what registers components of\nyour own: a .py file, or the "
    "dotted name of a module."
)
Arguments = Sequence[str]


def read_settings(arguments: Arguments) -> PruneConfig:
    """Reads the config of a command line: YAML files, then dotted overrides, then every check.

    Another `--search.policy.name` than the file's starts from that policy's defaults, for the file's options belong to
    its own policy; rules and criteria alike. A `--prune.target.x` takes the place of the file's target, unless both
    are of neurons, heads or experts.

    Raises:
        ValueError: What is wrong, one line a fault.
    """
    given = parse_settings(arguments)
    for part in COMPONENTS:
        options, rest = _split(arguments, f"--search.{part}.")
        if "name" in options:
            chosen, in_files = given["search"][part], parse_settings(rest)["search"][part]
            if chosen["name"] != _name_of(in_files):
                given["search"][part] = {name: chosen[name] for name in options}
    targets, _ = _split(arguments, TARGET)
    if targets and not {*targets} <= COUNTED:
        given["prune"]["target"] = {name: given["prune"]["target"][name] for name in targets}
    elif targets:
        given["prune"]["target"] = {name: given["prune"]["target"].get(name) for name in COUNTED}
    return check(given)


def parse_settings(arguments: Arguments, kind: type[Strict] = PruneConfig) -> dict[str, Any]:
    """Merges files and overrides into a nested dict that is checked key by key, not as a whole.

    Args:
        arguments: Command line after the command's name.
        kind: Class of the settings, whose fields are the options.

    Raises:
        ValueError: What is wrong with the first key that is wrong, in one line.
    """
    try:
        given = settings_parser(kind).parse_args(list(arguments)).as_dict()
    except jsonargparse.ArgumentError as error:
        raise ValueError(_explain(str(error))) from None
    return {name: part for name, part in given.items() if name not in ("config", "resume")}


def take_plugins(arguments: Arguments) -> tuple[list[str], list[str]]:
    """Loads the plugins that `--plugin` names on a command line.

    Returns:
        The plugins as they were named, and the command line without them.

    Raises:
        ValueError: If one cannot be imported, or none is named.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--plugin", action="append", default=[])
    try:
        known, rest = parser.parse_known_args(list(arguments))
    except argparse.ArgumentError as error:
        raise ValueError(str(error)) from None
    for plugin in known.plugin:
        load_plugin(plugin)
    return known.plugin, rest


def _name_of(component: Any) -> Any:
    """Gives the name of a component that is written as a name, as name and options, or not at all."""
    return component.get("name") if isinstance(component, dict) else component


def _split(arguments: Arguments, prefix: str) -> tuple[list[str], list[str]]:
    """Gives the names of the options with a prefix on a command line, and the command line without them."""
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


def config_files(arguments: Arguments) -> list[str]:
    """Lists the files that --config names on a command line."""
    given = zip(arguments, [*arguments[1:], ""], strict=True)
    return [word.partition("=")[2] or after for word, after in given if re.match("--config(=|$)", word)]


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Reads a YAML file that holds a mapping.

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
    """Reads the config that a run saved with its checkpoint, as data: its maker decides nothing that runs or writes.

    Whether code is run, metrics from elsewhere are loaded, or anything is written beside the output, is only for the
    command line to say; what the folder says of it is left out, with a warning where it says something.

    Raises:
        ValueError: If the folder holds no such config.
    """
    run = RunFolder(folder)
    path = run.config
    if not path.is_file():
        name = path.relative_to(run.root)
        raise ValueError(f"{folder} holds no {name}, so it is no run's output: name data with --config")
    config = read_yaml(path)
    for part in ("model", "task", "output"):
        if not isinstance(config.get(part), dict):
            raise ValueError(f"{path} must have a part '{part}': it is not of a run")
    if config["model"].pop("trust_remote_code", False):
        warnings.warn(f"{path} asks for remote code, which only --model.trust_remote_code can allow", stacklevel=2)
    if config["task"].pop("metrics", None):
        warnings.warn(f"{path} names metrics, which only --task.metrics can choose", stacklevel=2)
    draws = {name: value for name, value in config["output"].items() if name == "random_seeds"}
    return {**config, "output": {"dir": f"{folder.rstrip('/')}{CUT}", **draws}}


@contextmanager
def as_file(config: dict[str, Any]) -> Iterator[str]:
    """Writes a config where --config can name it, for as long as the context lasts; gives the file's path."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "settings.yaml"
        path.write_text(yaml.safe_dump(config))
        yield str(path)


class HelpFormatter(jsonargparse.DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """A help text that says in words what a setting may hold."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = super()._get_help_string(action) or ""
        return text.replace("type: %(type)s", known_types(PruneConfig).get(action.dest, "%(type)s"))


def settings_parser(kind: type[Strict] = PruneConfig) -> jsonargparse.ArgumentParser:
    """Makes the parser whose --help explains every field of the config."""
    parser = jsonargparse.ArgumentParser(
        prog="mabprune prune",
        description="Prunes a Hugging Face model and writes a smaller checkpoint. Settings come from\n"
        "--config, a YAML file, and dotted options override it:\n"
        f"--search.policy.name exp3 --prune.target.neurons 0.5\n\n{PLUGIN_HELP}",
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
    """Lists what is registered, with the options of each; those that all of a kind share come once."""
    lines = []
    for title, registry in REGISTRIES.items():
        options = {name: describe_options(registry.get(name)) for name in registry.names()}
        if not any(options.values()):
            lines += [textwrap.fill(f"{title}: {', '.join(options)}", width=79, subsequent_indent="  "), ""]
            continue
        shared = [option for option in next(iter(options.values())) if all(option in own for own in options.values())]
        lines.append(f"{title} and their options:")
        for name, own in options.items():
            lines += [f"  {name}", *(_option_line(option) for option in own if option not in shared)]
        if shared:
            lines += [f"  every {registry.kind}", *map(_option_line, shared)]
        lines.append("")
    return "\n".join(lines)


def _option_line(option: tuple[str, Any, str]) -> str:
    """Writes an option of a component (name, default, description) as indented lines."""
    name, default, text = option
    return textwrap.fill(
        f"{name}: {text} (default: {default})", width=79, initial_indent=" " * 6, subsequent_indent=" " * 10
    )


def _explain(message: str) -> str:
    """Puts jsonargparse's message in one line, with the nearest known key for an unknown one."""
    unknown = (
        re.search(r"Group '(?P<group>[^']*)' does not accept option '(?P<key>[^']*)'", message)
        or re.search(r"Option '(?P<key>[^']*)' is not accepted", message)
        or re.search(r"unrecognized arguments: --(?P<key>[^ =]*)", message)
    )
    if unknown:
        parts = unknown.groupdict()
        return _unknown_key(".".join(filter(None, (parts.get("group"), parts["key"]))))
    if message.startswith("Unexpected config"):
        given = " ".join(message.partition(":")[2].split())
        return f"the file of --config must hold a mapping of settings, got {given or 'an empty file'}"
    wrong = re.search(r'Parser key "(?P<key>[^"]*)":(?P<rest>.*)', message, re.DOTALL)
    if wrong:
        return _wrong_value(wrong["key"], wrong["rest"])
    return " ".join(message.split())


def _unknown_key(key: str) -> str:
    """Names the nearest known key for one that is not there, at the place where the path leaves the known ones."""
    if key in RETIRED:
        return RETIRED[key]
    known = known_types(PruneConfig)
    while "." in key and key.rpartition(".")[0] not in known:
        key = key.rpartition(".")[0]
    return f"unknown key '{key}'.{nearest(key, [*known, *(path.rpartition('.')[2] for path in known)])}"


def _wrong_value(key: str, details: str) -> str:
    """Says which rule a value breaks: one of ours (pydantic's "Value error"), or the type of the key."""
    types = known_types(PruneConfig)
    broken = re.search("Value error, (.*?)(?: \\[type=|$)", details, re.MULTILINE)
    given = "(?:(?:Got|Given) value: |Unable to load config ['\"])(.*?)(?:['\"] - |$)"
    value = re.search(given, details, re.MULTILINE)
    if broken or key not in types or not value:
        return f"{key}: {broken[1] if broken else ' '.join(details.split())}"
    return f"{key} must be {types[key]}, got {value[1]}"
