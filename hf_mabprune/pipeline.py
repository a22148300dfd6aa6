"""The whole flow, top to bottom: config -> model + task -> arms -> pulls <-> policy -> one order of removal -> sizes
cut from it (`result.py`: selection -> surgery -> comparison) -> checkpoints, reports, figures, model cards."""

import copy
import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import LoggerType, set_seed
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_mabprune import config
from hf_mabprune.architectures import architecture_of, family_of
from hf_mabprune.artifacts import publish as hub
from hf_mabprune.artifacts.run_folder import DETAILS
from hf_mabprune.checkpoints.load import load_config, load_tokenizer, load_weights
from hf_mabprune.compensation import DenseReference, make_compensation
from hf_mabprune.config import EvaluateConfig, ModelConfig, PruneConfig, TaskConfig
from hf_mabprune.data.splits import load_splits
from hf_mabprune.effects.pulls.base import Cost
from hf_mabprune.effects.pulls.replay import ReplayPulls
from hf_mabprune.effects.refit_costs import RefitCosts
from hf_mabprune.evaluation import quality as evaluation
from hf_mabprune.evaluation.comparison import Session
from hf_mabprune.evaluation.report import ModelFigures, Report
from hf_mabprune.iterative import Stage
from hf_mabprune.policies import POLICIES, Policy
from hf_mabprune.recovery.recover import check_recovery
from hf_mabprune.registry import check_options, nearest
from hf_mabprune.result import PruneResult, Source, write
from hf_mabprune.runtime import threads
from hf_mabprune.runtime.files import Protected, check_space
from hf_mabprune.runtime.processes import main_first, on_main
from hf_mabprune.runtime.resume import RunState, check_free, open_run
from hf_mabprune.search import progress as console
from hf_mabprune.search.allocation import Allocation
from hf_mabprune.search.loop import Search, SearchResult
from hf_mabprune.selection import layouts
from hf_mabprune.selection.plan import Plan
from hf_mabprune.tasks.base import TASKS, Batch, Task, build_task, check_head, check_reward, task_for_model
from hf_mabprune.tasks.sampling import batches_of, encode_sample

SPLITS = ("calibration", "validation", "test")
ARMS_COLUMNS = {"kind", "layer", "start", "stop", "pulls", "mean", "removed_round", "order"}


def prune(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    calibration: Dataset,
    validation: Dataset,
    test: Dataset,
    target: dict[str, Any],
    output_dir: str | Path,
    *,
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
        tokenizer: Of the model; it is saved with the checkpoint.
        calibration, validation, test: Data sets that share no examples. Rewards see calibration, the choice of the
            layout sees validation, and the report sees test.
        target: What to remove, e.g. `{"parameters": 0.3}` or `{"neurons": 0.5, "heads": 0.5}`; a list of fractions
            gives several sizes from one search.
        output_dir: Folder for the checkpoint, the report and the card.
        task, prune, search, compensation, recovery, output: Parts of the YAML config, under the same keys.
        seed: Of everything random.
        resume: Go on with the same call that was interrupted.

    Returns:
        The smallest size, ready to use; `result.cut` makes others without new pulls.

    Raises:
        ValueError: For a setting or data that cannot work; nothing is written then.
        FileExistsError: If the output folder exists and `output["overwrite"]` is not set.
        Interrupted: A KeyboardInterrupt, on SIGINT and SIGTERM, once the search is saved.
    """
    settings = config.check(
        {
            "model": {"name": model.config.name_or_path or type(model).__name__},
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
    splits = dict(zip(SPLITS, (calibration, validation, test), strict=True))
    training, device = model.training, model.device
    accelerator = make_accelerator(settings)
    try:
        with open_run(settings, accelerator, resume) as run, threads.chosen(accelerator):
            session = prepare(settings, model.to(accelerator.device), tokenizer, splits, accelerator)
            return _run(settings, session, tokenizer, run, model.dtype)
    finally:
        model.train(training).to(device)


def prune_from_config(settings: PruneConfig, resume: bool = False, configs: Sequence[str | Path] = ()) -> PruneResult:
    """Prunes the model that a config names on the data that it names: what `scripts/prune.py` calls.

    Args:
        settings: Of the run, checked, e.g. from `PruneConfig.from_yaml`.
        resume: Go on with the run that was interrupted; one that has saved nothing yet starts from the beginning.
        configs: Files that the settings were read from; the output never takes their place.

    Returns:
        The smallest size, ready to use; `result.cut` makes others without new pulls.

    Raises:
        ValueError: For a setting, a model or data that cannot work; nothing is written then.
        OSError: If model or data cannot be read, the disk is full, or the output folder exists and
            `output.overwrite` is not set.
        Interrupted: A KeyboardInterrupt, on SIGINT and SIGTERM, once the search is saved.
    """
    check_settings(settings, resume, [Protected("the config", Path(file)) for file in configs])
    accelerator = make_accelerator(settings)
    with open_run(settings, accelerator, resume) as run, threads.chosen(accelerator):
        session, tokenizer = load_session(settings, accelerator)
        return _run(settings, session, tokenizer, run, saved_precision(settings.model, session.model.dtype))


def _run(
    settings: PruneConfig,
    session: Session,
    tokenizer: PreTrainedTokenizerBase,
    run: RunState,
    save_dtype: torch.dtype,
) -> PruneResult:
    """Everything after model and data are there."""
    accelerator, model = run.accelerator, session.model
    sizes = settings.prune.sizes()
    plans = [layouts.make_plans(model, session.arms, session.totals, size) for size in sizes]
    check_space(settings.output.dir, len(sizes) * session.totals["parameters"] * save_dtype.itemsize)
    accelerator.print(console.header(model, session.arms, accelerator))
    accelerator.print(console.baseline(session.task, session.baseline))

    if accelerator.log_with:
        accelerator.init_trackers("hf_mabprune", {"config": settings.to_yaml()})
    run.identify(model, session.batches["calibration"])
    stage = None
    if settings.stages > 1:
        stage = in_stages(settings, Stage.first(session, plans[0].search), run)
        found, cost = stage.found, stage.cost
    else:
        found, cost = search(settings, session, [plan.search for plan in plans], run)
    source = Source(settings, session, tokenizer, save_dtype, found, cost, stage)
    result = write(settings.output.dir, map(source.cut, sizes), settings, search_state=run.saved())
    for report in result.sizes:
        accelerator.log(report.numbers())
    for tracker in accelerator.trackers:
        tracker.finish()
    run.finish()
    if settings.output.push_to_hub:
        on_main(accelerator, lambda: publish(settings))
    return result


def cut_run(folder: str | Path, settings: PruneConfig) -> PruneResult:
    """Other sizes from a finished run, without new pulls.

    Args:
        folder: That the run left behind.
        settings: Of that run, with other targets and another output folder.

    Returns:
        The smallest of these sizes, with the reports of all.

    Raises:
        ValueError: If the folder holds no run, or the settings name another model or other arms than it had.
        FileExistsError: If the output folder exists.
    """
    arms, report = read_run(folder)
    if settings.stages > 1:
        raise ValueError("cut trains no model on the way to a size: set recovery.stages to 1, or make a new run")
    check_settings(settings, protected=[Protected("the run to cut from", Path(folder), whole=True)])
    accelerator = make_accelerator(settings)
    with open_run(settings, accelerator) as run, threads.chosen(accelerator):
        session, tokenizer = load_session(settings, accelerator)
        save_dtype = saved_precision(settings.model, session.model.dtype)
        found = SearchResult.from_table(arms, session.arms, report.search.rounds)
        paid = Cost(**{name: getattr(report.search, name) for name in Cost.__dataclass_fields__})
        source = Source(settings, session, tokenizer, save_dtype, found, paid)
        sizes = settings.prune.sizes()
        for size in sizes:
            layouts.make_plans(session.model, session.arms, session.totals, size)
        result = write(settings.output.dir, map(source.cut, sizes), settings, earlier=report.sizes)
        run.finish()
        return result


def evaluate_checkpoint(settings: EvaluateConfig) -> tuple[Task, ModelFigures]:
    """Quality on the test split, size, MACs and latency of any checkpoint of a supported family.

    Args:
        settings: The checkpoint and the data that it is measured on.

    Returns:
        The task, which says what the metrics are, and the figures; the KL divergence is None, for there is no
        dense model to compare with.

    Raises:
        ValueError: For a setting, a model or data that cannot work.
        OSError: If model or data cannot be read.
    """
    accelerator = make_accelerator()
    splits = main_first(accelerator, lambda: load_splits(settings.task))
    model, tokenizer = load_model(settings.model, settings.task, {"test": splits["test"]})
    model.to(accelerator.device).eval()
    task = build_task(settings.task, tokenizer, model.config, type(model).__name__)
    encoded = encode_sample(task, splits["test"], settings.task.evaluation_examples, settings.seed)
    batches = batches_of(task, encoded, settings.task.batch_size, by_length=True)
    found = evaluation.evaluate(evaluation.forward_of(model, task), task, batches, accelerator)
    try:
        tokens = read_run(settings.model.name)[1].sequence_length
    except ValueError:  # a checkpoint that no run has made
        tokens = int(np.mean([batch["input_ids"].shape[-1] for batch in batches]))
    weights = sum(file.stat().st_size for file in Path(settings.model.name).glob("*.safetensors"))
    return task, ModelFigures(
        **evaluation.count_parameters(model),
        macs=evaluation.count_macs(model, tokens, task.one_sequence),
        loss=found.loss,
        kl=None,
        metrics=found.metrics,
        intervals=found.intervals,
        latency_ms=evaluation.measure_latency([model], task, batches[len(batches) // 2])[0],
        checkpoint_bytes=weights or None,
    )


def read_run(folder: str | Path) -> tuple[pd.DataFrame, Report]:
    """The table of arms and the report of a finished run, or of one of its sizes.

    Raises:
        ValueError: If the folder holds no finished run.
    """
    folder = Path(folder)
    places = [folder / DETAILS, *(path.parent for path in sorted(folder.glob(f"*/{DETAILS}/arms.parquet")))]
    place = next((place for place in places if (place / "arms.parquet").exists()), None)
    if place is None or not (place / "report.json").exists():
        raise ValueError(f"{folder} holds no finished run: no {DETAILS}/arms.parquet and report.json in it")
    arms = pd.read_parquet(place / "arms.parquet")
    if missing := ARMS_COLUMNS - set(arms.columns):
        raise ValueError(f"{place / 'arms.parquet'} is not of this version of hf_mabprune: no column {min(missing)}")
    return arms, Report.from_json(place / "report.json")


def publish(settings: PruneConfig) -> None:
    """Pushes what a run wrote: one repository a size, whose names end in that of the size if there are several."""
    folder, repo_id = Path(settings.output.dir), str(settings.output.push_to_hub)
    places = sorted(place.parent for place in folder.glob("*/config.json")) or [folder]
    for place in places:
        hub.push_checkpoint(place, repo_id if place == folder else f"{repo_id}-{place.name}")


def check_settings(settings: PruneConfig, resume: bool = False, protected: Sequence[Protected] = ()) -> None:
    """Everything that can be refused before a model or data set is loaded.

    Args:
        protected: What the output must not take the place of, beside what the settings name.

    Raises:
        ValueError, FileExistsError: With the rule, the value and the remedy.
    """
    make_policy(settings, 1)
    if settings.compensation:
        make_compensation(settings.compensation)
    check_free(settings, resume, protected)
    check_trackers(settings.output.log_with)
    if settings.output.push_to_hub:
        hub.check_name("output.push_to_hub", settings.output.push_to_hub)
        hub.checked_token(None)
    if settings.task.type is not None:
        check_reward(settings.search.reward, TASKS.get(settings.task.type))


def check_trackers(names: list[str]) -> None:
    """Raises ValueError for a tracker that Accelerate does not know, or whose package is not installed."""
    known = [str(tracker.value) for tracker in LoggerType if tracker != LoggerType.ALL]
    for name in names:
        if name not in known:
            raise ValueError(f"output.log_with: no tracker '{name}'.{nearest(name, known)} Known: {', '.join(known)}")
        if LoggerType(name) not in get_available_trackers():
            raise ValueError(f"output.log_with: tracker '{name}' needs its package: pip install {name}")


def make_accelerator(settings: PruneConfig | None = None) -> Accelerator:
    """Accelerate's engine, on CPU where there is no GPU, with the trackers that the settings name.

    Raises:
        ValueError: If the launch asked for several processes and this one would run alone, or recovery cannot run.
    """
    output = settings.output if settings else None
    accelerator = Accelerator(
        cpu=not torch.cuda.is_available(),
        log_with=(list(output.log_with) or None) if output else None,
        project_dir=(output.log_dir or f"{output.dir}.logs") if output and output.log_with else None,
    )
    asked = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != asked:
        raise ValueError(
            f"the launch asked for {asked} processes, Accelerate runs {accelerator.num_processes}: use a launch file "
            "from configs/accelerate"
        )
    if settings and settings.recovery:
        check_recovery(settings.recovery, accelerator.num_processes)
    return accelerator


def load_model(
    settings: ModelConfig, task: TaskConfig, splits: Mapping[str, Dataset] | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model with the head that the task needs, in the precision of the search, and its tokenizer.

    Args:
        splits: Purpose -> data that must suit the task; what does not is refused before the weights are loaded.

    Raises:
        ValueError: If the model is quantised, an adapter, of an unknown family, has no head for the task or lacks
            weights, or if settings or data do not suit the task.
        OSError: If it does not exist.
    """
    origin = {"revision": settings.revision, "trust_remote_code": settings.trust_remote_code}
    stored = load_config(settings.name, **origin)
    family_of(stored)
    head = (stored.architectures or ["a model of unknown head"])[0]
    kind = task.type or task_for_model(head, stored)
    check_head(kind, head)
    tokenizer = load_tokenizer(settings.name, **origin)
    suited = build_task(task, tokenizer, stored, head)
    for purpose, dataset in (splits or {}).items():
        suited.check(dataset, purpose)
    dtype = torch.float32 if settings.dtype == "auto" else getattr(torch, settings.dtype)
    return load_weights(TASKS.get(kind).auto_class, settings.name, dtype=dtype, **origin), tokenizer


def saved_precision(settings: ModelConfig, searched: torch.dtype) -> torch.dtype:
    """Precision of the saved weights: that of the source checkpoint, unless the settings name one."""
    if settings.save_dtype != "auto":
        return getattr(torch, settings.save_dtype)
    origin = {"revision": settings.revision, "trust_remote_code": settings.trust_remote_code}
    stored = load_config(settings.name, **origin).dtype
    return stored if isinstance(stored, torch.dtype) else searched


def load_session(settings: PruneConfig, accelerator: Accelerator) -> tuple[Session, PreTrainedTokenizerBase]:
    """The model and the data that a config names, made ready, and the tokenizer as it came.

    Raises:
        ValueError, OSError: As `load_splits` and `load_model`.
    """
    splits = main_first(accelerator, lambda: load_splits(settings.task))
    model, tokenizer = load_model(settings.model, settings.task, splits)
    return prepare(settings, model.to(accelerator.device), tokenizer, splits, accelerator), tokenizer


def prepare(
    settings: PruneConfig,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    splits: dict[str, Dataset],
    accelerator: Accelerator,
) -> Session:
    """Model, data and arms, made ready to be pulled and judged."""
    set_seed(settings.seed)
    model.eval()
    architecture = architecture_of(model)
    # Calls leave their truncation and padding in a tokenizer; the one that is saved must be as it came.
    task = build_task(settings.task, copy.deepcopy(tokenizer), model.config, type(model).__name__)
    check_reward(settings.search.reward, task)
    batches = prepare_batches(settings, task, splits)
    tokens = int(np.mean([batch["input_ids"].shape[-1] for batch in batches["calibration"]]))
    arms = architecture.arm_table(model, settings.prune.kinds(), settings.prune.block_size, tokens)
    totals = evaluation.count_parameters(model) | {"macs": evaluation.count_macs(model, tokens, task.one_sequence)}
    compensation = make_compensation(settings.compensation) if settings.compensation else None
    training = None
    if settings.recovery:
        training = encode_sample(task, splits["calibration"], settings.recovery.examples, settings.seed)
    session = Session(model, task, arms, batches, tokens, totals, accelerator, compensation, training)
    if compensation:
        _ = session.reference  # too few batches for it are refused before any pull
    return session


def in_stages(settings: PruneConfig, stage: Stage, run: RunState) -> Stage:
    """Search, surgery, refit and training in turns, until the whole target is reached."""
    for number in range(1, settings.stages + 1):
        run.accelerator.print(f"stage {number} of {settings.stages}")
        plan = stage.next_plan(number / settings.stages)
        stage = stage.cut(settings, plan, *search(settings, stage.session, [plan], run))
    return stage


def search(
    settings: PruneConfig,
    session: Session,
    plans: Sequence[Plan],
    run: RunState | None = None,
    reference: DenseReference | None = None,
) -> tuple[SearchResult, Cost]:
    """Finds the arms that go, and says what that cost.

    Args:
        plans: Of all sizes, least removed first; the search follows the last.
        run: Where the search is kept after every round, and taken up from; None keeps nothing.
        reference: In the place of the session's, where another one has the same model and data.
    """
    accelerator, batches = session.accelerator, session.batches["calibration"]
    reward, products = settings.search.reward, half_of(settings)
    parts = session.model, session.arms, session.task, batches
    refit_costs = RefitCosts.of(*parts, settings.seed) if settings.search.refit else None
    stand_ins = refit_costs.stand_ins if refit_costs else None
    pulls = ReplayPulls(*parts, reward, accelerator, products=products, stand_ins=stand_ins)
    if refit_costs:
        pulls.cost = replace(refit_costs.cost)
    policy = make_policy(settings, len(session.arms))
    allocation = None
    if refit_costs and settings.search.moves and session.compensation:
        allocation = Allocation(
            session.compensation, reference or session.reference, settings.search.moves, settings.seed
        )
    config, most = settings.search, settings.task.max_broken_batches
    under_way = Search(pulls, policy, plans[-1], config, most, refit_costs, allocation, plans[:-1])
    if run and run.restore(under_way):
        accelerator.print(f"resumed in round {under_way.number}, after {under_way.result.pulls.sum():,} pulls")
    bar = console.SearchProgress(under_way, accelerator.is_main_process)
    with bar, run.deferred_signals() if run else nullcontext():
        for done in under_way.run():
            bar.show(done)
            if done:
                accelerator.log({f"search/{name}": value for name, value in asdict(done).items()}, step=done.number)
            if run:
                run.keep(under_way, round_ended=done is not None)
    if run:
        run.ended(under_way)
    return under_way.finished(), pulls.cost


def half_of(settings: PruneConfig) -> torch.dtype | None:
    """Precision of the products of a pull, where it is not the model's own."""
    return None if settings.search.products == "auto" else getattr(torch, settings.search.products)


def prepare_batches(settings: PruneConfig, task: Task, splits: dict[str, Dataset]) -> dict[str, list[Batch]]:
    """Checked, encoded, sampled and collated: purpose -> batches."""
    for purpose in SPLITS:
        task.check(splits[purpose], purpose)
    counts = {"calibration": settings.task.calibration_examples}
    batches = {}
    for purpose in SPLITS:
        encoded = encode_sample(
            task, splits[purpose], counts.get(purpose, settings.task.evaluation_examples), settings.seed
        )
        drawn = purpose == "calibration"
        batches[purpose] = batches_of(task, encoded, settings.task.batch_size, equal=drawn, by_length=not drawn)
    return batches


def make_policy(settings: PruneConfig, arms: int) -> Policy:
    """The policy that the config names, with its options checked.

    Raises:
        ValueError: If there is no such policy, or an option is unknown or wrong.
    """
    options = dict(settings.search.policy)
    name = options.pop("name", None)
    if name is None:
        raise ValueError(f"search.policy needs a name. Known: {', '.join(POLICIES.names())}")
    policy = POLICIES.get(name)
    return policy(arms=arms, seed=settings.seed, **check_options("policy", name, policy, options))
