"""What goes wrong while files of data are read, in one line: which file, what is wrong with it, and the remedy."""

import errno
import re
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from textwrap import shorten

from datasets import logging
from datasets.exceptions import DatasetGenerationError
from pandas.errors import ParserError, ParserWarning

from hf_mabprune.config import DatasetConfig
from hf_mabprune.errors import OutsideError, in_words, one_line

LOST_FIELDS = "Length of header"  # or names does not match length of data
NO_PLACE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR}


@contextmanager
def reading(dataset: DatasetConfig) -> Iterator[None]:
    """Turns whatever a loader raises into one line, and keeps its own log of it quiet.

    Args:
        dataset: The data that is read in the context.

    Raises:
        OutsideError: With the file, as far as it can be told, and what to do.
    """
    level = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", LOST_FIELDS, ParserWarning)
            yield
    except OutsideError:
        raise
    except Exception as error:
        cause = error.__cause__ if isinstance(error, DatasetGenerationError) and error.__cause__ else error
        reason = shorten(_reason(cause), 400)
        message = f"data of '{dataset.path}' cannot be read: {reason}; {_remedy(cause, dataset)}"
        raise OutsideError(one_line(message)) from error
    finally:
        logging.set_verbosity(level)


def _reason(error: BaseException) -> str:
    """Says what is wrong; of what the loader says of columns that differ, the one sentence that does."""
    text = in_words(error)
    differing = re.search(r"All the data files must .*?\)\.", text)
    return differing.group() if differing else text


def _remedy(error: BaseException, dataset: DatasetConfig) -> str:
    """Says what to do about an error."""
    if isinstance(error, OSError) and error.errno in NO_PLACE:
        return "data are kept in the cache of `datasets`: make room there, or set HF_DATASETS_CACHE to another folder"
    look = f"look at {_file_of(error, dataset)}"
    if isinstance(error, UnicodeError):
        return f"{look}, and name its encoding, e.g. task.dataset.options: {{encoding: latin-1}}"
    if dataset.path == "csv" and isinstance(error, (ParserError, ParserWarning, DatasetGenerationError)):
        options = "{sep: ';', names: [text, label]}"
        return f"{look}, and name its separator, quotes or columns, e.g. task.dataset.options: {options}"
    return look


def _file_of(error: BaseException, dataset: DatasetConfig) -> str:
    """Names the file that was read when an error came up, or all of them where that cannot be told."""
    named: list[str] = []
    for names in (dataset.data_files or {}).values():
        named += [names] if isinstance(names, str) else names
    for frame, _ in traceback.walk_tb(error.__traceback__):
        read = frame.f_locals.get("file")  # what every loader calls it
        if isinstance(read, str) and "packaged_modules" in frame.f_code.co_filename:
            return next((name for name in named if name in read), read)
    return ", ".join(dict.fromkeys(named)) or "its files"
