"""The whole flow, read top to bottom: settings -> session (model, task, data, arms) -> search -> selection -> surgery
-> compensation -> (recovery) -> evaluation -> checkpoint, report, figures, card -> (Hub).

`_run` is that line; `make_size` is its second half, once for each size.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from hf_mabprune import config
from hf_mabprune.artifacts.publish import push_run
from hf_mabprune.artifacts.run_folder import RunFolder
from hf_mabprune.artifacts.run_writer import RunWriter
from hf_mabprune.checkpoints.processors import Processor
from hf_mabprune.checkpoints.save import round_weights
from hf_mabprune.checks import check_settings
from hf_mabprune.config import PromiseConfig, PruneConfig, PruningConfig
from hf_mabprune.data.columns import with_fields
from hf_mabprune.data.given import Given, given_splits
from hf_mabprune.evaluation.choice import select
from hf_mabprune.evaluation.comparison import Comparison
from hf_mabprune.evaluation.examples import examples_table
from hf_mabprune.evaluation.figures import SizeFigures
from hf_mabprune.evaluation.first_lines import baseline, header
from hf_mabprune.evaluation.promise import Made, check_promise, smallest_that_holds
from hf_mabprune.iterative import prune_in_stages
from hf_mabprune.recovery.memory import saved_bytes
from hf_mabprune.recovery.recover import recover
from hf_mabprune.rehearsal import rehearse_checkpoint
from hf_mabprune.result import FinishedSearch, PruneResult
from hf_mabprune.runtime import heap, threads
from hf_mabprune.runtime.accelerator import make_accelerator
from hf_mabprune.runtime.caller import check_usable, undisturbed
from hf_mabprune.runtime.files import check_space
from hf_mabprune.runtime.places import Protected
from hf_mabprune.runtime.resume import RunState, open_run
from hf_mabprune.runtime.wrappers import left_as_it_was, unwrap
from hf_mabprune.search.run import search
from hf_mabprune.session import Session, make_session, open_session
from hf_mabprune.surgery.cut import cut
from hf_mabprune.surgery.empty_layers import without_empty_layers


@undisturbed()
def prune(
    model: PreTrainedModel,
    tokenizer: Processor,
    calibration: Given,
    validation: Given,
    test: Given,
    target: dict[str, Any],
    output_dir: str | Path,
    *,
    certification: Given | None = None,
    task: dict[str, Any] | None = None,
    prune: dict[str, Any] | None = None,
    search: dict[str, Any] | None = None,
    compensation: str | dict[str, Any] | None = "least_squares",
    recovery: dict[str, Any] | None = None,
    output: dict[str, Any] | None = None,
    seed: int = 0,
    resume: bool = False,
) -> PruneResult:
    """Prunes a model in memory. The model itself is left as it is.

    Args:
        model: A supported model, in the precision that the search should run in (float32, best).
        tokenizer: Tokenizer of the model, or its image or table processor; it is saved with the checkpoint.
        calibration, validation, test: Data sets that share no examples, as `datasets`, pandas or torch have them (see
            `data.given.as_dataset`). Rewards see calibration, the choice of the layout sees validation, and the report
            sees test.
        target: Fractions to remove, e.g. `{"parameters": 0.3}` or `{"neurons": 0.5, "heads": 0.5}`; a list of
            fractions gives several sizes from one search.
        output_dir: Folder for the checkpoint, the report and the card.
        certification: Data that share no examples with those, which the bounds of the report are computed on; None
            takes test.
        task, prune, search, compensation, recovery, output: Parts of the YAML config, under the same keys.
        seed: Seed of everything random.
        resume: Whether to go on with the same call that was interrupted.

    Returns:
        The smallest size, ready to use; `result.cut` makes others without new pulls.

    Raises:
        ValueError: For a setting or data that cannot work; nothing is written then.
        FileExistsError: If the output folder exists and `output["overwrite"]` is not set, or holds anything but an
            earlier output.
        Interrupted: A KeyboardInterrupt, on SIGINT, SIGTERM and SIGHUP, once the search is saved.
    """
    for part, key, argument in ((prune, "target", "target"), (output, "dir", "output_dir")):
        if isinstance(part, Mapping) and key in part:
            raise ValueError(f"{argument} is given twice, as {part[key]!r} too: leave '{key}' out of the other")
    dense = unwrap(model)
    settings = config.check(
        {
            "model": {"name": dense.config.name_or_path or type(dense).__name__},
            "task": {"dataset": {"path": "in-memory"}, **(task or {})},
            "prune": {"target": target, **(prune or {})},
            "search": search or {},
            "compensation": compensation,
            "recovery": recovery,
            "output": {"dir": str(output_dir), **(output or {})},
            "seed": seed,
        }
    )
    check_settings(settings, resume)
    given = {"calibration": calibration, "validation": validation, "test": test}
    given |= {} if certification is None else {"certification": certification}
    splits = given_splits(**given)
    splits = {purpose: with_fields(data, settings.task.columns.values()) for purpose, data in splits.items()}
    check_usable(dense)
    paths = RunFolder(settings.output.dir).under_way
    accelerator = make_accelerator(settings, paths.logs)
    with (
        left_as_it_was(dense),
        threads.chosen(accelerator),
        heap.trimmed(),
        open_run(settings, paths, accelerator, resume) as run,
    ):
        dense.to(accelerator.device)
        return _run(make_session(settings, dense, tokenizer, splits, accelerator, dense.dtype), run)


@undisturbed()
def prune_from_config(settings: PruneConfig, resume: bool = False, configs: Sequence[str | Path] = ()) -> PruneResult:
    """Prunes the model that a config names on the data that it names: what `scripts/prune.py` calls.

    Args:
        settings: Run settings, checked, e.g. from `PruneConfig.from_yaml`.
        resume: Whether to go on with the run that was interrupted; one that has saved nothing yet begins.
        configs: Files that the settings were read from; the output never takes their place.

    Returns:
        The smallest size, ready to use; `result.cut` makes others without new pulls.

    Raises:
        ValueError: For a setting, a model or data that cannot work; nothing is written then.
        OSError: If model or data cannot be read, the disk is full, or the output folder may not be replaced.
        Interrupted: A KeyboardInterrupt, on SIGINT, SIGTERM and SIGHUP, once the search is saved.
    """
    check_settings(settings, resume, [Protected("the config", Path(file)) for file in configs])
    paths = RunFolder(settings.output.dir).under_way
    accelerator = make_accelerator(settings, paths.logs)
    with threads.chosen(accelerator), heap.trimmed(), open_run(settings, paths, accelerator, resume) as run:
        return _run(open_session(settings, accelerator), run)


def _run(session: Session, run: RunState) -> PruneResult:
    """The flow, from model, data and arms to what is on disk and on the Hub."""
    settings, accelerator, comparison = session.settings, session.accelerator, Comparison(session)
    sizes = settings.prune.sizes()
    plans = [session.plans(size).search for size in sizes]
    written = len(sizes) * session.totals["parameters"] * session.save_dtype.itemsize
    if settings.recovery:
        written += saved_bytes(session.dense, settings.recovery, max(len(sizes), settings.stages))
    check_space(settings.output.dir, written)
    rehearse_checkpoint(session)
    accelerator.print(header(session.dense, session.arms, accelerator))
    if settings.prune.promise:
        check_promise(comparison, settings.prune.promise)
    accelerator.print(baseline(session.task, comparison.dense, comparison.doubts, comparison.vocabulary))
    run.begin(session.dense, chain.from_iterable(session.batches.values()))

    if settings.stages > 1:
        stage = prune_in_stages(session, plans[0], run)
        finished = FinishedSearch(comparison, stage.found, stage.cost, make_size, stage)
    else:
        finished = FinishedSearch(comparison, *search(session, plans, run), make_size)
    result = write_sizes(finished, sizes, settings.prune.promise, run=run)
    publish(settings, run)
    run.finish([report.numbers() for report in result.sizes])
    return result


def publish(settings: PruneConfig, run: RunState) -> None:
    """Publishes what a run has written, where its settings name a place on the Hub."""
    if repo_id := settings.output.push_to_hub:
        run.publish(lambda: push_run(RunFolder(settings.output.dir), repo_id))


def publish_finished(settings: PruneConfig) -> None:
    """Publishes the output of a run that ended before it was published; nothing is computed.

    Args:
        settings: Run settings, as they were.

    Raises:
        OSError: If that fails; it can be tried again.
    """
    check_settings(settings, resume=True)
    paths = RunFolder(settings.output.dir).under_way
    with open_run(settings, paths, make_accelerator(), resume=True) as run:
        publish(settings, run)
        run.finish()


def write_sizes(
    finished: FinishedSearch,
    sizes: Sequence[PruningConfig],
    promise: PromiseConfig | None = None,
    earlier: Sequence[SizeFigures] = (),
    run: RunState | None = None,
) -> PruneResult:
    """Makes every size, and puts all of them into the output folder, or none.

    Args:
        finished: The finished search.
        sizes: From the largest model to the smallest.
        promise: What the one size must not lose that is written then, the smallest that does not; None writes all.
        earlier: Sizes that were cut from the search before, for the comparison.
        run: Where trainings are kept, and the saved search is that shall lie beside the report.

    Returns:
        The last size, with the figures of the files on disk and the reports of all.
    """
    session = finished.session
    finished = replace(finished, cost=finished.cost + session.record())  # no stage from here on runs the dense model
    made: Iterable[Made] = (make_model(finished, size, run) for size in sizes)
    settings = session.settings
    if promise:
        made = [smallest_that_holds(finished.comparison, made, promise)]
        settings = settings.model_copy(update={"prune": settings.prune.model_copy(update={"target": sizes[0].target})})
    with RunWriter(RunFolder(session.settings.output.dir), session, settings) as writer:
        for each in made:
            result = report_on(finished, each)
            writer.add(*result.parts())
        reports = writer.finish(earlier, run.saved() if run else None)
    return replace(result, report=reports[-1], sizes=reports)


def make_size(finished: FinishedSearch, prune: PruningConfig) -> PruneResult:
    """Makes one size of a finished search, and measures it; errors as those of `make_model`."""
    return report_on(finished, make_model(finished, prune))


def make_model(finished: FinishedSearch, prune: PruningConfig, run: RunState | None = None) -> Made:
    """Makes one size of a finished search: selection, surgery, compensation and recovery, in their order.

    Args:
        finished: The finished search.
        prune: The size.
        run: Where the training is kept, and taken up from; None keeps nothing.

    Raises:
        ValueError: If the target is out of reach.
    """
    session, comparison = finished.session, finished.comparison
    settings = session.settings.model_copy(update={"prune": prune})
    if stage := finished.stage:  # which has cut, refitted and trained on its way
        selection, model, refitted, trained = stage.selection(prune), stage.model, stage.refitted, stage.trained
    else:
        selection = select(comparison, finished.found, prune)
        keep = session.arms.kept_units(selection.kept)
        model = cut(session.dense, keep, selection.plan.layout)
        refitted = session.refit(model, keep)
        trained = None
        if settings.recovery and session.training is not None:
            data, seed = (session.task, session.training), settings.seed
            kept = run.training(model, seed) if run else None
            trained = recover(model, session.dense, *data, settings.recovery, session.accelerator, seed, kept)
    model = without_empty_layers(model)
    round_weights(model, session.save_dtype)
    return Made(prune, selection, model, refitted, trained)


def report_on(finished: FinishedSearch, made: Made) -> PruneResult:
    """Measures one size beside the dense model and random draws."""
    session, comparison, found = finished.session, finished.comparison, finished.found
    settings = session.settings.model_copy(update={"prune": made.prune})
    tested = comparison.tested(made.model)
    stages = made.selection, made.model, made.refitted, made.trained
    report = replace(comparison.report(settings, *stages, found, finished.cost, tested), promise=made.promise)
    examples = examples_table(session.task, session.batches["test"], comparison.dense, tested)
    return PruneResult(made.model, report, session.arms, found, made.selection, settings, finished, examples)
