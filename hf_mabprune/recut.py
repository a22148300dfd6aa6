"""Other sizes from a finished run, without new pulls: `mabprune cut`."""

from pathlib import Path

from hf_mabprune.artifacts.run_folder import RunFolder
from hf_mabprune.checks import check_settings
from hf_mabprune.config import PruneConfig
from hf_mabprune.effects.pulls.cost import Cost
from hf_mabprune.evaluation.comparison import Comparison
from hf_mabprune.pipeline import make_size, write_sizes
from hf_mabprune.rehearsal import rehearse_checkpoint
from hf_mabprune.result import FinishedSearch, PruneResult
from hf_mabprune.runtime import heap, threads
from hf_mabprune.runtime.accelerator import make_accelerator
from hf_mabprune.runtime.places import Protected
from hf_mabprune.runtime.resume import open_run
from hf_mabprune.search.result import SearchResult
from hf_mabprune.session import open_session


def cut_run(folder: str | Path, settings: PruneConfig) -> PruneResult:
    """Cuts other sizes from a finished run, without new pulls.

    Args:
        folder: Output folder of that run.
        settings: Settings of that run, with other targets and another output folder.

    Returns:
        The smallest of these sizes, with the reports of all.

    Raises:
        ValueError: If the folder holds no run or one whose files have changed, or the settings name another model or
            other arms than it had.
        FileExistsError: If the output folder exists.
    """
    RunFolder(folder).check_unchanged()
    arms, report = RunFolder(folder).read()
    if settings.prune.promise:
        raise ValueError(
            "cut tests no promise, for the run has looked at the certification split: set prune.promise to null, or "
            "make a new run with all sizes"
        )
    if settings.stages > 1:
        raise ValueError("cut trains no model on the way to a size: set recovery.stages to 1, or make a new run")
    check_settings(settings, protected=[Protected("the run to cut from", Path(folder), whole=True)])
    paths = RunFolder(settings.output.dir).under_way
    accelerator = make_accelerator(settings, paths.logs)
    with threads.chosen(accelerator), heap.trimmed(), open_run(settings, paths, accelerator) as run:
        session = open_session(settings, accelerator)
        found = SearchResult.from_table(arms, session.arms, report.search.rounds)
        paid = Cost(**{name: getattr(report.search, name) for name in Cost.__dataclass_fields__})
        finished = FinishedSearch(Comparison(session), found, paid, make_size)
        sizes = settings.prune.sizes()
        for size in sizes:
            session.plans(size)
        rehearse_checkpoint(session)
        result = write_sizes(finished, sizes, earlier=report.sizes)
        run.finish()
        return result
