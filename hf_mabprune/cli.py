"""The `mabprune` commands. Scripts and `python -m hf_mabprune` call the same functions."""

import argparse
import os
import re
import sys
import textwrap
from collections.abc import Sequence
from typing import Any

import jsonargparse
import transformers
from datasets.utils import disable_progress_bars

from hf_mabprune.config import PruneConfig, check, known_types
from hf_mabprune.pipeline import prune_from_config
from hf_mabprune.policies import POLICIES, Policy
from hf_mabprune.registry import describe_options, nearest
from hf_mabprune.tasks.base import TASKS

USER_ERRORS = (ValueError, OSError)
POLICY = "--search.policy."


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
        lines = (line.strip() for line in str(error).splitlines())
        sys.stderr.write(f"mabprune: {'; '.join(filter(None, lines))}\n")
        return 2
    if os.environ.get("RANK", "0") == "0":
        sys.stdout.write(result.summary(settings.output.dir))
    return 0


def read_settings(arguments: Sequence[str]) -> PruneConfig:
    """The config of a command line: YAML files, then dotted overrides, then every check.

    Another `--search.policy.name` than the file's starts from that policy's defaults, for the file's options belong to
    its own policy.

    Raises:
        ValueError: What is wrong, one line a fault.
    """
    given = _parse(arguments)
    options, rest = _split_policy(arguments)
    if "name" in options and given["search"]["policy"]["name"] != _parse(rest)["search"]["policy"].get("name"):
        given["search"]["policy"] = {name: given["search"]["policy"][name] for name in options}
    return check(given)


def _parse(arguments: Sequence[str]) -> dict[str, Any]:
    """Files and overrides merged, as a nested dict."""
    try:
        given = settings_parser().parse_args(list(arguments)).as_dict()
    except jsonargparse.ArgumentError as error:
        raise ValueError(_explain(str(error))) from None
    return {name: part for name, part in given.items() if name != "config"}


def _split_policy(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Names of the policy options on a command line, and the command line without them."""
    options, rest, tokens = [], [], iter(arguments)
    for token in tokens:
        if token.startswith(POLICY):
            name, equals, _ = token.removeprefix(POLICY).partition("=")
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
        return text.replace("type: %(type)s", known_types().get(action.dest, "%(type)s"))


def settings_parser() -> jsonargparse.ArgumentParser:
    """The parser whose --help explains every field of the config."""
    parser = jsonargparse.ArgumentParser(
        prog="mabprune prune",
        description="Prunes a Hugging Face model and writes a smaller checkpoint. Settings come from\n"
        "--config, a YAML file, and dotted options override it:\n"
        "--search.policy.name exp3 --prune.target.neurons 0.5",
        epilog=_components(),
        exit_on_error=False,
        formatter_class=HelpFormatter,
    )
    parser.add_argument("--config", action="config", help="YAML file with any of the settings below")
    parser.add_class_arguments(PruneConfig)
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
        known = known_types()
        while "." in key and key.rpartition(".")[0] not in known:
            key = key.rpartition(".")[0]
        return f"unknown key '{key}'.{nearest(key, known)}"
    wrong = re.search(r'Parser key "(?P<key>[^"]*)":(?P<rest>.*)', message, re.DOTALL)
    if wrong:
        broken = re.search("Value error, (.*?)(?: \\[type=|$)", wrong["rest"], re.MULTILINE)
        value = re.search("(?:Got|Given) value: (.*)", wrong["rest"])
        if broken or wrong["key"] not in known_types() or not value:
            return f"{wrong['key']}: {broken[1] if broken else ' '.join(wrong['rest'].split())}"
        return f"{wrong['key']} must be {known_types()[wrong['key']]}, got {value[1]}"
    return " ".join(message.split())


COMMANDS: dict[str, Any] = {"prune": prune}
