"""From a command line to checked settings: YAML files, then dotted overrides; also their help."""

import argparse
import re
import tempfile
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import jsonargparse
import yaml
from pydantic import BaseModel

from hf_mabprune.architectures import ARCHITECTURES
from hf_mabprune.artifacts.run_folder import RunFolder
from hf_mabprune.compensation import COMPENSATIONS
from hf_mabprune.config import PruneConfig, Strict, check, known_types, parse_yaml, read_yaml
from hf_mabprune.config.errors import part_of, shown
from hf_mabprune.criteria import CRITERIA
from hf_mabprune.effects.rewards import REWARDS
from hf_mabprune.errors import one_line
from hf_mabprune.exports import EXPORTS
from hf_mabprune.plugins import load_plugin
from hf_mabprune.policies import POLICIES
from hf_mabprune.registry import Registry, describe_options
from hf_mabprune.search.rules import RULES
from hf_mabprune.tasks.base import TASKS

COMPONENTS = ("policy", "rule", "criterion")  # parts of the search that have a name and options of their own
REGISTRIES: dict[str, Registry[Any]] = {  # by what their names are, and where they are written
    "model types": ARCHITECTURES,
    "tasks (task.type)": TASKS,
    "rewards (search.reward)": REWARDS,
    "policies (search.policy)": POLICIES,
    "removal rules (search.rule)": RULES,
    "criteria (search.criterion)": CRITERIA,
    "compensations (compensation)": COMPENSATIONS,
    "exports (mabprune export --to)": EXPORTS,
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
        OSError: If a file cannot be read.
    """
    given = parse_settings(arguments)
    for part in COMPONENTS:
        options, rest = _split(arguments, f"--search.{part}.")
        chosen = _part(given, "search", part)
        if "name" in options and isinstance(chosen, dict):
            in_files = _part(parse_settings(rest), "search", part)
            if chosen.get("name") != (in_files.get("name") if isinstance(in_files, dict) else in_files):
                given["search"][part] = {name: value for name, value in chosen.items() if name in options}
    targets, _ = _split(arguments, TARGET)
    target = _part(given, "prune", "target")
    if targets and isinstance(target, dict):
        kept = COUNTED if {*targets} <= COUNTED else {*targets}
        given["prune"]["target"] = {name: value for name, value in target.items() if name in kept}
    return check(given)


def parse_settings(arguments: Arguments, kind: type[Strict] = PruneConfig) -> dict[str, Any]:
    """Merges files and overrides, in their order, into a nested dict that nothing has checked as settings yet.

    Args:
        arguments: Command line after the command's name.
        kind: Class of the settings, whose fields are the options.

    Raises:
        ValueError: If a file or a value is no YAML of plain data, or an option is none.
        OSError: If a file cannot be read.
    """
    given: dict[str, Any] = {}
    for name, text in _options(arguments, kind):
        if name == "config":
            _merge(given, read_yaml(text), kind)
        else:
            _override(given, name, text, kind)
    return given


def _options(arguments: Arguments, kind: type[Strict]) -> Iterator[tuple[str, str]]:
    """Gives the options of a command line and their values, in order; shows the help and leaves where it is asked for.

    Raises:
        ValueError: For what is no option, and for an option without a value.
    """
    words = iter(arguments)
    for word in words:
        if word == "-h" or word == "--help" or re.fullmatch(r"--[\w.]+\.help", word):
            settings_parser(kind).parse_args([word])
        option, equals, text = word.partition("=")
        name = option.removeprefix("--")
        if not re.fullmatch(r"--\w[^\s=]*", option):
            raise ValueError(f"unrecognized argument {one_line(word)!r}: settings are written --part.key value")
        if name in ("resume", "plugin"):
            raise ValueError(f"--{name} {'takes no value' if equals else 'is not for this command'}")
        value = text if equals else next(words, None)
        if value is None or (not equals and value.startswith("--")):
            raise ValueError(f"--{name} needs a value: write --{name} VALUE, or --{name}=VALUE")
        yield name, value


def _merge(given: dict[str, Any], file: dict[str, Any], kind: type[BaseModel]) -> None:
    """Lays the settings of a file over those that are there: part by part, key by key."""
    for key, value in file.items():
        field = kind.model_fields.get(key)
        part = part_of(field.annotation) if field else None
        if part and isinstance(value, dict) and isinstance(given.get(key), dict):
            _merge(given[key], value, part)
        else:
            given[key] = value


def _override(given: dict[str, Any], name: str, text: str, kind: type[BaseModel]) -> None:
    """Sets the value of one dotted key.

    Raises:
        ValueError: If the text is no YAML, or a part on the way is neither a mapping nor the name of a component.
    """
    *path, key = name.split(".")
    annotation: Any = kind
    for step in path:
        annotation = _inner(annotation, step)
        value = given.get(step)
        if isinstance(value, str) and dict in _alternatives(annotation):  # the name of a component
            value = {"name": value}
        if not isinstance(value, dict | None):
            raise ValueError(f"--{name}: {step} must be a mapping, got {shown(value)}")
        given[step] = value or {}
        given = given[step]
    annotation = _inner(annotation, key)
    value, part = _value(text, annotation, f"--{name}"), part_of(annotation)
    if part and isinstance(value, dict) and isinstance(given.get(key), dict):
        _merge(given[key], value, part)
    else:
        given[key] = value


def _value(text: str, annotation: Any, where: str) -> Any:
    """Reads what stands behind an option: as it is where a string is due, else as YAML."""
    kinds = _alternatives(annotation)
    if str not in kinds:
        return parse_yaml(text, where)
    if text == "null" and type(None) in kinds:
        return None
    brackets = {list: "[]", dict: "{}"}
    nested = any(text[:1] + text[-1:] == brackets.get(kind) for kind in kinds)
    return parse_yaml(text, where) if nested else text


def _inner(annotation: Any, key: str) -> Any:
    """Gives the type of what lies under a key of a part or of a mapping; Any where it is not known."""
    if part := part_of(annotation):
        return part.model_fields[key].annotation if key in part.model_fields else Any
    mappings = [kind for kind in (annotation, *get_args(annotation)) if get_origin(kind) is dict]
    return get_args(mappings[0])[1] if mappings else Any


def _alternatives(annotation: Any) -> list[Any]:
    """Lists the types that a value itself may have: str, dict, None."""
    if get_origin(annotation) is Annotated:
        return _alternatives(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [kind for option in get_args(annotation) for kind in _alternatives(option)]
    return [get_origin(annotation) or annotation]


def _part(tree: Any, *path: str) -> Any:
    """Gives what lies at a place of a nested dict; None where nothing does."""
    for key in path:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


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
    parser.add_argument("--config", help="YAML file with any of the settings below")
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
