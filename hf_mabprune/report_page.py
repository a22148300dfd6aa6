"""The page of a finished run, as one HTML file: `mabprune report`."""

import os
from collections.abc import Sequence
from pathlib import Path

from hf_mabprune.artifacts.page import MARK, page_of
from hf_mabprune.artifacts.page_examples import Told
from hf_mabprune.artifacts.run_data import RunData, read_run_data, task_of_run
from hf_mabprune.artifacts.run_folder import RunFolder
from hf_mabprune.config import PruneConfig
from hf_mabprune.errors import in_words
from hf_mabprune.evaluation.examples import read_examples
from hf_mabprune.evaluation.report import Report
from hf_mabprune.progress import stage
from hf_mabprune.runtime.files import is_plain_file, kind_of, write_atomically
from hf_mabprune.tasks.base import Task

SHOWN = 20  # examples that a page shows where nobody says how many
LONGEST_HEAD = 1000  # bytes of a page that hold its mark


@stage("report")
def write_page(
    folder: str | Path,
    settings: PruneConfig,
    output: str | Path | None = None,
    examples: int = SHOWN,
    slices: Sequence[str] = (),
) -> Path:
    """Writes the page of a run.

    The texts of the examples it shows are read from the data again, for the run stored none. Where that fails, or the
    data are not those of the run, the page does without, and says why.

    Args:
        folder: Folder that a run left behind, of one size or of several.
        settings: Settings of that run, with what the user says of the data.
        output: File; None takes the name of the folder, with .html. An earlier page is replaced.
        examples: Test examples that each size shows at most; 0 shows none, and leaves every text out.
        slices: Columns of the data that cut it into slices; none takes those with 2 to 12 values which the task does
            not read.

    Returns:
        The file.

    Raises:
        ValueError: If the folder holds no finished run, a number or a column is wrong, slices are named of data that
            are not there, or the file lies in the folder.
        FileExistsError: If something else is where the file shall be.
        OSError: If the file cannot be written.
    """
    if examples < 0:
        raise ValueError(f"--examples must be 0 or more, got {examples}")
    run = RunFolder(folder)
    sizes = run.sizes() or [run]
    read = sorted(((size, *size.read()) for size in sizes), key=lambda each: -each[2].after.parameters)
    place = Path(output) if output is not None else run.page
    _check_place(place, run)
    tables = [read_examples(size.examples) for size, *_ in read]
    task, data, missing = None, None, ""
    if any(table is not None for table in tables):  # else there is nothing to show beside a text
        task, data, missing = _read_again(settings, *read[0][::2])
    if slices and not data:
        raise ValueError(f"--slice {slices[0]} takes the data: {missing or 'the run stored no answers to examples'}")
    values = data.slices(slices) if data else {}
    told = [
        Told(report, arms, size.config.read_text(), table, task, data, values, examples)
        for (size, arms, report), table in zip(read, tables, strict=True)
    ]
    write_atomically(place, page_of(told, missing).encode())
    return place


def _check_place(place: Path, run: RunFolder) -> None:
    """Refuses to write into the folder of a run, which is pushed as a whole, and over what is no such page."""
    if place.resolve().is_relative_to(run.root.resolve()):
        raise ValueError(f"{place} lies in {run.root}, and a push would take it along: name a file elsewhere")
    if not os.path.lexists(place):
        place.parent.mkdir(parents=True, exist_ok=True)
        return
    if not is_plain_file(place):
        raise FileExistsError(f"{place} is {kind_of(place)}: name another file with --output")
    with place.open("rb") as file:
        if MARK.encode() not in file.read(LONGEST_HEAD):
            raise FileExistsError(f"{place} exists and is no page of hf_mabprune: name another file with --output")


def _read_again(settings: PruneConfig, run: RunFolder, report: Report) -> tuple[Task | None, RunData | None, str]:
    """Gives the task of a run and its test data, as far as they can be had, and else the reason."""
    try:
        task = task_of_run(settings, run.root, report)
    except Exception as error:  # of a config, a tokenizer or their absence
        return None, None, f"the checkpoint cannot be read ({in_words(error)})"
    try:
        return task, read_run_data(settings, task, report), ""
    except Exception as error:  # of the data, the network or the disk
        return task, None, in_words(error)
