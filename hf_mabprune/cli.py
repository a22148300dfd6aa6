"""The `mabprune` commands. Scripts and `python -m hf_mabprune` call the same functions."""

import argparse
import os
import re
import sys
from collections.abc import Sequence
from typing import Any

import jsonargparse
import transformers
from datasets.utils import disable_progress_bars

from hf_mabprune.config import PruneConfig, check, known_paths
from hf_mabprune.pipeline import prune_from_config
from hf_mabprune.policies import POLICIES
from hf_mabprune.registry import describe_options, nearest
from hf_mabprune.tasks.base import TASKS

USER_ERRORS = (ValueError, OSError, RuntimeError)


def main(arguments: Sequence[str] | None = None) -> int:
    """`mabprune COMMAND ...`."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser("mabprune", description="Prune Hugging Face Transformers with bandits.")
    parser.add_argument("command", choices=sorted(COMMANDS), help="what to do; COMMAND --help explains its settings")
    return COMMANDS[parser.parse_args(arguments[:1]).command](arguments[1:])


def prune(arguments: Sequence[str] | None = None) -> int:
    """`prune --config run.yaml [--dotted.key value ...]`: one line and exit code 2 for what the user can mend."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    disable_progress_bars()
    try:
        settings = read_settings(sys.argv[1:] if arguments is None else arguments)
        result = prune_from_config(settings)
    except USER_ERRORS as error:
        sys.stderr.write(f"mabprune: {error}\n")
        return 2
    if os.environ.get("RANK", "0") == "0":
        sys.stdout.write(result.summary(settings.output.dir))
    return 0


def read_settings(arguments: Sequence[str]) -> PruneConfig:
    """The config of a command line: YAML files, then dotted overrides, then every check.

    Raises:
        ValueError: One line that says what is wrong.
    """
    parser = settings_parser()
    try:
        given = parser.parse_args(list(arguments)).as_dict()
    except jsonargparse.ArgumentError as error:
        raise ValueError(_explain(str(error))) from None
    given.pop("config")
    return check(given)


def settings_parser() -> jsonargparse.ArgumentParser:
    """The parser whose --help explains every field of the config."""
    parser = jsonargparse.ArgumentParser(
        prog="prune.py",
        description="Prunes a Hugging Face model and writes a smaller checkpoint. Settings come from --config, a YAML "
        "file, and dotted options override it: --search.policy.name exp3 --prune.target.neurons 0.5",
        epilog=_components(),
        exit_on_error=False,
        formatter_class=type("Formatter", (jsonargparse.DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter), {}),
    )
    parser.add_argument("--config", action="config", help="YAML file with any of the settings below")
    parser.add_class_arguments(PruneConfig)
    return parser


def _components() -> str:
    lines = [f"tasks (task.type): {', '.join(TASKS.names())}", "", "policies (search.policy) and their options:"]
    for name in POLICIES.names():
        options = describe_options(POLICIES.get(name))
        lines += [f"  {name}", *(f"      {option}: {text} (default {default})" for option, default, text in options)]
    return "\n".join(lines)


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
        known = known_paths()
        while "." in key and key.rpartition(".")[0] not in known:
            key = key.rpartition(".")[0]
        return f"unknown key '{key}'.{nearest(key, known)}"
    wrong = re.search(r'Parser key "(?P<key>[^"]*)":(?P<rest>.*)', message, re.DOTALL)
    if wrong:
        lines = [line.strip() for line in wrong["rest"].splitlines() if line.strip()]
        reason = next((line for line in lines if line.startswith(("Input should", "Expected", "Value error"))), lines[0])
        return f"{wrong['key']}: {reason}".split(" [type=")[0] + _given(message)
    return " ".join(message.split())


def _given(message: str) -> str:
    value = re.search(r"Got value: (.*)", message)
    return f", got {value[1]}" if value else ""


COMMANDS: dict[str, Any] = {"prune": prune}
