"""The whole flow, top to bottom: config -> model + task -> arms -> pulls <-> policy -> selection -> surgery ->
comparison -> checkpoint, report, figures, model card."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from accelerate import Accelerator
from accelerate.utils import set_seed
from datasets import Dataset
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from hf_mabprune import checkpoint, config, console, evaluation, layouts
from hf_mabprune.architectures import architecture_of
from hf_mabprune.arms import ArmTable
from hf_mabprune.comparison import Judge, Selection, make_report
from hf_mabprune.config import ModelConfig, PruneConfig, TaskConfig
from hf_mabprune.output import write_output
from hf_mabprune.policies import POLICIES, Policy
from hf_mabprune.pulls.base import Cost
from hf_mabprune.pulls.replay import ReplayPulls
from hf_mabprune.registry import check_options
from hf_mabprune.report import Report
from hf_mabprune.search import SearchResult, run_search
from hf_mabprune.selection import Plan
from hf_mabprune.surgery import prune_copy
from hf_mabprune.tasks.base import TASKS, Batch, Task, build_task, check_head, task_for_model
from hf_mabprune.tasks.splits import batches_of, encode_sample, load_splits

SPLITS = ("calibration", "validation", "test")


@dataclass(frozen=True)
class PruneResult:
    """What `prune` gives back.

    Attributes:
        model: The smaller model, ready to use, save or push.
        report: Every figure of the run.
        arms: All arms.
        search: The order of removal and the history of the search.
    """

    model: PreTrainedModel
    report: Report
    arms: ArmTable
    search: SearchResult

    def table(self) -> str:
        """before | after | random control, with 95% intervals."""
        return self.report.table()

    def summary(self, folder: str | Path) -> str:
        """The table, and what to know about it: the last words of a run."""
        report = self.report
        auto_class = TASKS.get(report.task).auto_class
        needs = "" if report.layout == "uniform" else "   # after import hf_mabprune, or with trust_remote_code=True"
        return (
            f"{self.table()}\n"
            f"{100 * report.removed_fraction():.1f}% of FFN and attention parameters removed | "
            f"layout {report.layout}, {report.layout_reason}\n"
            f"stopped: {report.search.stopped_because} | {report.search.pulls:,} pulls "
            f"in {report.search.seconds:.0f} s | reload difference {report.reload['max_logit_difference']:.1g}\n"
            f'load it: {auto_class}.from_pretrained("{folder}"){needs}\n'
        )


def prune(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    calibration: Dataset,
    validation: Dataset,
    test: Dataset,
    target: dict[str, float],
    output_dir: str | Path,
    *,
    task: dict[str, Any] | None = None,
    prune: dict[str, Any] | None = None,
    search: dict[str, Any] | None = None,
    output: dict[str, Any] | None = None,
    seed: int = 0,
) -> PruneResult:
    """Prunes a model in memory. The model itself is left as it is.

    Args:
        model: A supported model, in the precision that the search should run in (float32, best).
        tokenizer: Of the model; it is saved with the checkpoint.
        calibration, validation, test: Data sets that share no examples. Rewards see calibration, the choice of the
            layout sees validation, and the report sees test.
        target: What to remove, e.g. `{"parameters": 0.3}` or `{"neurons": 0.5, "heads": 0.5}`.
        output_dir: Folder for the checkpoint, the report and the card.
        task, prune, search, output: Parts of the YAML config, under the same keys.
        seed: Of everything random.

    Raises:
        ValueError: For a setting or data that cannot work; nothing is written then.
        FileExistsError: If the output folder exists and `output["overwrite"]` is not set.
    """
    settings = config.check(
        {
            "model": {"name": model.config.name_or_path or type(model).__name__},
            "task": {"dataset": {"path": "in-memory"}, **(task or {})},
            "prune": {"target": target, **(prune or {})},
            "search": search or {},
            "output": {"dir": str(output_dir), **(output or {})},
            "seed": seed,
        }
    )
    check_settings(settings)
    splits = dict(zip(SPLITS, (calibration, validation, test), strict=True))
    training, device = model.training, model.device
    accelerator = make_accelerator()
    try:
        return _run(settings, model.to(accelerator.device), tokenizer, splits, accelerator, model.dtype)
    finally:
        model.train(training).to(device)


def prune_from_config(settings: PruneConfig) -> PruneResult:
    """Prunes the model that a config names on the data that it names: what `scripts/prune.py` calls."""
    check_settings(settings)
    accelerator = make_accelerator()
    with accelerator.main_process_first():
        splits = load_splits(settings.task)
    model, tokenizer = load_model(settings.model, settings.task)
    stored = AutoConfig.from_pretrained(settings.model.name, revision=settings.model.revision).dtype
    wanted = settings.model.save_dtype
    save_dtype = (stored or model.dtype) if wanted == "auto" else getattr(torch, wanted)
    return _run(settings, model.to(accelerator.device), tokenizer, splits, accelerator, save_dtype)


def _run(
    settings: PruneConfig,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    splits: dict[str, Dataset],
    accelerator: Accelerator,
    save_dtype: torch.dtype,
) -> PruneResult:
    """Everything after model and data are there."""
    judge = prepare(settings, model, tokenizer, splits, accelerator)
    plans = layouts.make_plans(model, judge.arms, judge.totals, settings.prune)
    accelerator.print(console.header(model, judge.arms, accelerator))

    found, cost = search(settings, judge, plans.search)
    selection = choose_layout(judge, plans, found, settings)
    small = prune_copy(model, judge.arms.kept_units(selection.kept), selection.plan.layout)
    checkpoint.round_weights(small, save_dtype)

    report = make_report(settings, judge, selection, small, found, cost)
    if accelerator.is_main_process:
        arms = found.table(judge.arms, selection.kept)
        report = write_output(settings, report, small, tokenizer, arms, save_dtype, judge)
    accelerator.wait_for_everyone()
    return PruneResult(small, report, judge.arms, found)


def check_settings(settings: PruneConfig) -> None:
    """Everything that can be refused before a model or data set is loaded.

    Raises:
        ValueError, FileExistsError: With the rule, the value and the remedy.
    """
    make_policy(settings, 1)
    checkpoint.check_output_dir(settings.output.dir, settings.output.overwrite)
    if settings.task.type is not None:
        TASKS.get(settings.task.type)


def make_accelerator() -> Accelerator:
    """Accelerate's engine, on CPU where there is no GPU.

    Raises:
        ValueError: If the launch asked for several processes and this one would run alone.
    """
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    asked = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != asked:
        raise ValueError(
            f"the launch asked for {asked} processes, Accelerate runs {accelerator.num_processes}: use a launch file "
            "from configs/accelerate"
        )
    return accelerator


def load_model(settings: ModelConfig, task: TaskConfig) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model with the head that the task needs, in the precision of the search, and its tokenizer."""
    checkpoint.register_auto_classes()
    origin = {"revision": settings.revision, "trust_remote_code": settings.trust_remote_code}
    stored = AutoConfig.from_pretrained(settings.name, **origin)
    head = (stored.architectures or ["a model of unknown head"])[0]
    kind = task.type or task_for_model(head)
    check_head(kind, head)
    dtype = torch.float32 if settings.dtype == "auto" else getattr(torch, settings.dtype)
    model = getattr(transformers, TASKS.get(kind).auto_class).from_pretrained(settings.name, dtype=dtype, **origin)
    return model, AutoTokenizer.from_pretrained(settings.name, **origin)


def prepare(
    settings: PruneConfig,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    splits: dict[str, Dataset],
    accelerator: Accelerator,
) -> Judge:
    """Model, data and arms, made ready to be pulled and judged."""
    set_seed(settings.seed)
    model.eval()
    architecture = architecture_of(model)
    task = build_task(settings.task, tokenizer, model.config, type(model).__name__)
    batches = prepare_batches(settings, task, splits)
    tokens = int(np.mean([batch["input_ids"].shape[1] for batch in batches["calibration"]]))
    arms = architecture.arm_table(model, settings.prune.kinds(), settings.prune.block_size, tokens)
    totals = evaluation.count_parameters(model) | {"macs": evaluation.count_macs(model, tokens)}
    return Judge(model, task, arms, batches, tokens, totals, accelerator)


def search(settings: PruneConfig, judge: Judge, plan: Plan) -> tuple[SearchResult, Cost]:
    """Finds the arms that go, and says what that cost."""
    pulls = ReplayPulls(
        judge.model, judge.arms, judge.task, judge.batches["calibration"], settings.search.reward, judge.accelerator
    )
    policy = make_policy(settings, len(judge.arms))
    with console.SearchProgress(settings.search.rounds, judge.accelerator.is_main_process) as watcher:
        return run_search(pulls, policy, plan, settings.search, watcher), pulls.cost


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
        batches[purpose] = batches_of(task, encoded, settings.task.batch_size, equal=purpose == "calibration")
    return batches


def make_policy(settings: PruneConfig, arms: int) -> Policy:
    """The policy that the config names, with its options checked."""
    options = dict(settings.search.policy)
    name = options.pop("name", None)
    if name is None:
        raise ValueError(f"search.policy needs a name. Known: {', '.join(POLICIES.names())}")
    policy = POLICIES.get(name)
    return policy(arms=arms, seed=settings.seed, **check_options("policy", name, policy, options))


def choose_layout(judge: Judge, plans: layouts.Plans, found: SearchResult, settings: PruneConfig) -> Selection:
    """The arms that stay; where `auto` has a choice, validation decides between the layouts."""
    rules = layouts.width_multiple(settings.prune, judge.model.config.hidden_size), settings.prune.min_neurons
    best = Selection(plans.search, found.kept, *rules, reason=plans.reason).rounded(found.order)
    if plans.uniform is None:
        return best
    even = Selection.along(plans.uniform, found.order, *rules)
    loss, even_loss = (judge.masked(s.kept, "validation", intervals=False).loss for s in (best, even))
    cost = f"validation loss {even_loss:.4f} uniform, {loss:.4f} per_layer"
    if even_loss <= loss * (1 + settings.prune.auto_tolerance):
        return Selection(even.plan, even.kept, *rules, f"auto: loads with plain AutoModel and costs little: {cost}")
    return Selection(best.plan, best.kept, *rules, f"auto: uniform costs too much quality: {cost}")
