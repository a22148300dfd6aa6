"""What every command runs in: signals are heeded, and whatever goes wrong ends in one line and an exit code."""

import logging
import os
import shlex
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TextIO

import huggingface_hub.utils
import transformers
from datasets.utils import disable_progress_bars
from datasets.utils import logging as datasets_logging

from hf_mabprune.cli.settings import Arguments, take_plugins
from hf_mabprune.errors import in_words, is_out_of_memory, one_line, printable, without_credentials
from hf_mabprune.runtime import signals
from hf_mabprune.runtime.files import MADE_BY

USER_ERRORS = (ValueError, OSError, ImportError)  # a package that is missing, too
TRACEBACK = "MABPRUNE_TRACEBACK"  # environment variable that asks for the traceback of what should not happen
LONELY = 2.0  # seconds until another process than the main one takes it that it failed alone


class Failure(str):
    """A result to print that ends with exit code 1: something was looked at and is not as it should be."""


def guarded(command: Callable[[Arguments], str], arguments: Arguments) -> int:
    """Loads plugins, runs a command and prints its result, or what is wrong, in one line and once in a launch.

    Args:
        command: Function from the command line to what is printed.
        arguments: Command line, with the plugins that it names.

    Returns:
        Exit code: 0; 2 for what the user can mend; 1 for a `Failure` and for what should not happen; 128 + the number
        of a signal.
    """
    for library in (transformers.logging, datasets_logging, huggingface_hub.utils.logging):
        library.set_verbosity(logging.CRITICAL)  # they print what they raise
    logging.getLogger("accelerate.big_modeling").setLevel(logging.CRITICAL)  # which says what device_map asked for
    transformers.logging.disable_progress_bar()
    disable_progress_bars()
    speaks = os.environ.get("RANK", "0") == "0"
    warnings.formatwarning = lambda message, *_: f"mabprune: warning: {one_line(str(message))}\n" if speaks else ""
    sys.argv[1:] = map(without_credentials, sys.argv[1:])  # which trackers note, too
    plugins: list[str] = []
    try:
        with signals.heeded():
            plugins, arguments = take_plugins(arguments)
            message = command(arguments)
            code = int(isinstance(message, Failure))
    except BaseException as error:
        stopped = _interruption(error)
        if stopped is None and not isinstance(error, Exception):
            raise
        message, code = _stop(stopped, plugins) if stopped else _fault(error)
    if speaks:
        _write(sys.stderr if code and not isinstance(message, Failure) else sys.stdout, message)
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
        _write(sys.stderr, "".join(traceback.format_exception(error)))
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
    """Prints, as far as the terminal can and is there; no credentials, and nothing that steers a terminal."""
    message = without_credentials("\n".join(map(printable, message.split("\n"))))
    with suppress(OSError, ValueError, AttributeError):
        sys.stdout.flush()  # what was printed before stands before it, where both streams go to one place
    with suppress(OSError, ValueError):
        encoding = getattr(stream, "encoding", None) or "utf-8"
        stream.write(message.encode(encoding, "backslashreplace").decode(encoding))
        stream.flush()
