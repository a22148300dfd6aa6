"""The `mabprune` commands. Scripts and `python -m hf_mabprune` call the same functions."""

import argparse
import json
import os
import re
import shlex
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TextIO

import transformers
from datasets.utils import disable_progress_bars
from datasets.utils import logging as datasets_logging

from hf_mabprune.artifacts.publish import push_checkpoint
from hf_mabprune.artifacts.run_folder import RunFolder
from hf_mabprune.artifacts.stored import evaluate_checkpoint
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
    take_plugins,
)
from hf_mabprune.config import EvaluateConfig, check_as
from hf_mabprune.errors import in_words, is_out_of_memory, one_line
from hf_mabprune.evaluation.report import figures_table
from hf_mabprune.pipeline import prune_from_config, publish_finished
from hf_mabprune.preview import plan_run
from hf_mabprune.recut import cut_run
from hf_mabprune.runtime import signals
from hf_mabprune.runtime.files import MADE_BY
from hf_mabprune.runtime.resume import is_finished

USER_ERRORS = (ValueError, OSError)
TRACEBACK = "MABPRUNE_TRACEBACK"  # environment variable that asks for the traceback of what should not happen
LONELY = 2.0  # seconds until another process than the main one takes it that it failed alone


def main(arguments: Arguments | None = None) -> int:
    """Runs `mabprune COMMAND ...`; one line and exit code 2 for what the user can mend."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(
        "mabprune",
        description="Prune Hugging Face Transformers with bandits.",
        epilog="\n".join([*(f"  {command.__doc__}" for command in COMMANDS.values()), "", PLUGIN_HELP]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS, help="what to do; COMMAND --help explains its settings")
    return _guarded(COMMANDS[parser.parse_args(arguments[:1]).command], arguments[1:])


def _guarded(command: Callable[[Arguments], str], arguments: Arguments) -> int:
    """Loads plugins, runs a command and prints its result, or what is wrong, in one line and once in a launch."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    disable_progress_bars()
    datasets_logging.set_verbosity(datasets_logging.CRITICAL)  # it prints what it raises
    speaks = os.environ.get("RANK", "0") == "0"
    warnings.formatwarning = lambda message, *_: f"mabprune: warning: {one_line(str(message))}\n" if speaks else ""
    plugins: list[str] = []
    try:
        with signals.heeded():
            plugins, arguments = take_plugins(arguments)
            message, code = command(arguments), 0
    except BaseException as error:
        stopped = _interruption(error)
        if stopped is None and not isinstance(error, Exception):
            raise
        message, code = _stop(stopped, plugins) if stopped else _fault(error)
    if speaks:
        _write(sys.stderr if code else sys.stdout, message)
    elif code:
        _speak_if_alone(message)
    return code


def _interruption(error: BaseException) -> signals.Interrupted | None:
    """Finds the signal behind an error: what clears up on the way out may fail in its turn."""
    while error is not None and not isinstance(error, signals.Interrupted):
        if isinstance(error, KeyboardInterrupt):
            return signals.Interrupted(signal.SIGINT)
        error = error.__context__  # type: ignore[assignment]
    return error


def _stop(stopped: signals.Interrupted, plugins: Sequence[str]) -> tuple[str, int]:
    """Says how to go on, and gives the exit code that shells have for the signal."""
    again = " ".join([str(stopped.resume), *(f"--plugin {shlex.quote(plugin)}" for plugin in plugins)])
    way_on = f"{stopped}; go on with: {again}" if stopped.resume else str(stopped)
    return f"mabprune: {one_line(way_on)}\n", 128 + stopped.number


def _fault(error: BaseException) -> tuple[str, int]:
    """Says what is wrong: what the user can mend, with exit code 2; or where something failed that should not."""
    if isinstance(error, USER_ERRORS):
        has_words = not isinstance(error, OSError) or error.errno is None
        return f"mabprune: {one_line(str(error)) if has_words else in_words(error)}\n", 2
    if is_out_of_memory(error):
        return f"mabprune: {in_words(error)}: lower task.batch_size or task.max_length, or take a larger machine\n", 2
    if os.environ.get(TRACEBACK):
        traceback.print_exception(error)
    last = traceback.extract_tb(error.__traceback__)[-1]
    return (
        f"mabprune: {in_words(error)}, in {Path(last.filename).name} line {last.lineno}: neither settings nor data "
        f"were found wrong before, so this may be a fault of {MADE_BY}; {TRACEBACK}=1 shows where it comes from\n"
    ), 1


def _speak_if_alone(message: str) -> None:
    """Prints what another process than the main one has to say, unless the launcher ends it with all the others."""
    with suppress(KeyboardInterrupt), signals.heeded():
        time.sleep(LONELY)
        _write(sys.stderr, f"mabprune: process {os.environ['RANK']}: {message.removeprefix('mabprune: ')}")


def _write(stream: TextIO, message: str) -> None:
    """Prints, as far as the terminal can and is there."""
    with suppress(OSError, ValueError):
        encoding = getattr(stream, "encoding", None) or "utf-8"
        stream.write(message.encode(encoding, "backslashreplace").decode(encoding))
        stream.flush()


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
    if not isinstance(config.get("model", {}), dict):
        raise ValueError(f"model must be a mapping, got {config['model']}")
    config["model"] = {**config.get("model", {}), "name": known.checkpoint, "revision": None}
    with as_file({key: config[key] for key in EvaluateConfig.model_fields if key in config}) as base:
        settings = check_as(parse_settings(["--config", base, *rest], EvaluateConfig), EvaluateConfig)
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
    """Makes the parser of a command that starts from a folder."""
    description = (COMMANDS[command].__doc__ or "").partition(": ")[2]
    settings = f"Further settings are those of `mabprune prune --help`, e.g. {usage}. " if usage else ""
    parser = argparse.ArgumentParser(
        f"mabprune {command}", description=description, epilog=settings + PLUGIN_HELP, allow_abbrev=False
    )
    parser.add_argument(folder, help=text)
    return parser


def _without(arguments: Arguments, flag: str) -> tuple[list[str], bool]:
    """Gives the arguments without a flag, and whether it was there."""
    return [word for word in arguments if word != flag], flag in arguments
