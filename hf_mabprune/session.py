"""What every stage of a run works on: the dense model, its task, batches by split, arms, and the launch."""

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from datasets import Dataset
from transformers import PreTrainedConfig, PreTrainedModel

from hf_mabprune.architectures import family_of
from hf_mabprune.architectures.cost import arm_table, count_macs, count_parameters
from hf_mabprune.arms import ArmTable, KeepIndices
from hf_mabprune.checkpoints.dequantise import dequantising
from hf_mabprune.checkpoints.load import load_config, load_weights
from hf_mabprune.checkpoints.offload import on_device
from hf_mabprune.checkpoints.processors import Processor, load_processor
from hf_mabprune.compensation import (
    Compensation,
    CompensationFigures,
    DenseReference,
    compensate,
    make_compensation,
)
from hf_mabprune.config import REFIT_SHARE, ModelConfig, PruneConfig, PruningConfig, TaskConfig
from hf_mabprune.data.splits import load_splits, notes_on
from hf_mabprune.effects.dense_outputs import WHOLE, DenseOutputs
from hf_mabprune.effects.pulls.cost import Cost
from hf_mabprune.effects.reserve import Reserve
from hf_mabprune.effects.rewards import check_reward
from hf_mabprune.progress import over, stage
from hf_mabprune.quantities import AtHand, conditions, quantities_of
from hf_mabprune.recovery.recover import check_losses
from hf_mabprune.runtime.free_memory import make_reserve
from hf_mabprune.runtime.processes import main_first
from hf_mabprune.selection.layouts import Plans, largest_targets, make_plans
from hf_mabprune.selection.target import Quantity
from hf_mabprune.tasks.base import TASKS, Task
from hf_mabprune.tasks.batch import Batch, typical_example
from hf_mabprune.tasks.lookup import build_task, check_head, loaded_class, task_for_model
from hf_mabprune.tasks.readout import Readout
from hf_mabprune.tasks.sampling import batches_of, encode_sample, evaluation_batches, thinned
from hf_mabprune.tasks.together import check_splits, warned
from hf_mabprune.tasks.vocabulary import large_head
from hf_mabprune.vocabulary import CutVocabulary, cut_vocabulary

SPLITS = ("calibration", "validation", "test", "certification")  # the last one where it is named
REFIT = "refit"  # further examples of the calibration split
REFIT_READ = 0.5  # of `Compensation.read`, where tokens are predicted


@dataclass(frozen=True)
class Session:
    """Holds what all stages share; made by `open_session`, or by `make_session` from parts in memory.

    Attributes:
        settings: Run settings.
        dense: The model before pruning, on the device of the launch, in evaluation mode; it is never changed.
        processor: Tokenizer or processor of the model, as it came.
        batches: Split -> batches; and, under `REFIT`, further ones of calibration for refits alone.
        example: Inputs of one sequence, which MACs are counted for.
        totals: `parameters`, `ffn_parameters`, `attention_parameters` and `macs` of the dense model.
        save_dtype: Precision of saved weights.
        compensation: How pruned models are refitted, the random draws as well; None leaves them as they are.
        training: Encoded examples of the calibration split for recovery, where the run asks for it.
        warnings: What a reader of the report must know of the data.
        vocabulary: The model as it came, where `dense` is that without some tokens.
        outputs: Record of what the dense model says.
        quantities: What was measured for targets, by their conditions.
    """

    settings: PruneConfig
    dense: PreTrainedModel
    processor: Processor
    task: Task
    arms: ArmTable
    batches: Mapping[str, Sequence[Batch]]
    example: Batch
    totals: dict[str, int]
    accelerator: Accelerator
    save_dtype: torch.dtype
    compensation: Compensation | None = None
    training: Dataset | None = None
    warnings: Sequence[str] = ()
    vocabulary: CutVocabulary | None = None
    outputs: DenseOutputs = field(default_factory=DenseOutputs, repr=False)
    quantities: dict[str, dict[str, Quantity]] = field(default_factory=dict, init=False, repr=False)

    @property
    def reserve(self) -> Reserve:
        """Memory that everything shares which is kept to spare work."""
        return self.outputs.reserve

    @cached_property
    def reference(self) -> DenseReference:
        """The dense model on calibration data, for the refit of every selection."""
        calibration, further = self.batches["calibration"], self.batches.get(REFIT, ())
        read = self.compensation.read if self.compensation else 0.0
        read = REFIT_READ * self.task.predicts_tokens if read is None else read
        return DenseReference.on(self.dense, self.task, calibration, self.outputs, further, read)

    def dense_on(self, split: str, number: int, batch: Batch) -> Readout:
        """Gives what the dense model says on a batch, from the record.

        Args:
            split: Split of the batch.
            number: Number of the batch in its split.
            batch: The batch, on the model's device.
        """
        return self.outputs.readout((split, number, WHOLE), lambda: self.task.readout(self.dense, batch))

    def record_split(self, split: str) -> None:
        """Records what the dense model says on a split at once, where its layers have to be brought in."""
        batches = self.batches[split]
        keys = [(split, number, WHOLE) for number in range(len(batches))]
        self.outputs.fill(keys, self.dense, self.task, batches)

    @stage("dense model on record")
    def record(self) -> Cost:
        """Records what the stages after the search read of the dense model, so that none of them has to run it; refits
        that go bottom-up do.

        Returns:
            What that cost; nothing where all was on record already.
        """
        if not self.compensation:
            return Cost()
        started, paid = time.perf_counter(), self.reference.cost
        self.reference.record([] if self.compensation.bottom_up else sorted(set(self.arms.kind.tolist())))
        tokens = (self.reference.cost - paid).forward_tokens
        return Cost(forward_tokens=tokens, seconds=time.perf_counter() - started)

    def plans(self, prune: PruningConfig) -> Plans:
        """Checks a target against the layouts, before any pull.

        Args:
            prune: Settings with the one target of a size.

        Raises:
            ValueError: If the target is out of reach.
        """
        return make_plans(self.dense, self.arms, self.totals, prune, self.measured(prune))

    def largest_targets(self, prune: PruningConfig) -> dict[str, float]:
        """Finds the largest fraction of each quantity that a layout can remove; raises ValueError if it is not
        possible."""
        return largest_targets(self.dense, self.arms, self.totals, prune, self.measured(prune.sizes()[0]))

    def measured(self, prune: PruningConfig) -> dict[str, Quantity]:
        """Measures what a target is of, where the table of arms does not say it; errors as `quantities_of`."""
        if (key := f"{conditions(prune.target)} {prune.min_heads} {prune.min_neurons}") not in self.quantities:
            refitted = self.compensation is not None
            measured = quantities_of(self.dense, self.arms, prune, self.save_dtype, refitted, self.at_hand)
            self.quantities[key] = measured
        return self.quantities[key]

    @property
    def at_hand(self) -> AtHand:
        """What a model is timed with."""
        return AtHand(self.example, self.processor, self.accelerator)

    @stage("refit")
    def refit(self, small: PreTrainedModel, keep: KeepIndices) -> CompensationFigures | None:
        """Refits what stays of a cut model, in place, where the run asks for it; None where it does not."""
        return compensate(self.compensation, self.reference, small, keep) if self.compensation else None


def open_session(settings: PruneConfig, accelerator: Accelerator) -> Session:
    """Loads the model and the data that a config names, and makes them ready.

    Raises:
        ValueError, OSError: As `load_splits` and `load_model`.
    """
    splits = main_first(accelerator, lambda: load_splits(settings.task, settings.seed))
    stored = stored_config(settings.model)
    model, processor = load_model(settings.model, settings.task, splits, stored)
    save_dtype = saved_precision(settings.model, stored, model.dtype)
    on_device(model, accelerator.device)
    return make_session(settings, model, processor, splits, accelerator, save_dtype)


def make_session(
    settings: PruneConfig,
    model: PreTrainedModel,
    processor: Processor,
    splits: dict[str, Dataset],
    accelerator: Accelerator,
    save_dtype: torch.dtype,
) -> Session:
    """Makes model, data and arms ready for the search and all that follows.

    Args:
        settings: Run settings.
        model: The dense model, on the device of the launch; where settings cut its vocabulary, a copy without the
            tokens that go takes its place.
        processor: Tokenizer or processor of the model.
        splits: Split -> data set.
        save_dtype: Precision of saved weights.

    Raises:
        ValueError: For a setting or data that cannot work.
    """
    set_seed(settings.seed)
    model.eval()
    if vocabulary := cut_vocabulary(settings, model, processor, splits) if settings.prune.vocabulary else None:
        model, processor = vocabulary.model, vocabulary.processor
    # Calls leave their truncation and padding in a tokenizer; the one that is saved must be as it came.
    task = build_task(settings.task, copy.deepcopy(processor), model.config, type(model).__name__)
    check_reward(settings.search.reward, task.predicts_classes, task.has_loss)
    splits = {split: splits[split] for split in SPLITS if split in splits}
    warnings = [*warned(notes_on(settings.task)), *check_splits(task, splits)]
    batches = make_batches(settings, task, splits)
    example = task.inputs(typical_example(batches["calibration"]))
    batches["calibration"] = affordable(settings, task, model, example, batches["calibration"], settings.seed)
    prune = settings.prune
    with stage("counting arms"):
        arms = arm_table(model, prune.kinds(), settings.block_size, example)
        totals = count_parameters(model) | {"macs": count_macs(model, example)}
    compensation = make_compensation(settings.compensation) if settings.compensation else None
    training = None
    if settings.recovery:
        check_losses(settings.recovery, task, model)
        training = encode_sample(task, splits["calibration"], settings.recovery.examples, settings.seed)
    data = task, arms, batches, example, totals
    outputs = DenseOutputs(make_reserve(settings.search.memory, model.device))
    session = Session(
        settings,
        model,
        processor,
        *data,
        accelerator,
        save_dtype,
        compensation,
        training,
        warnings,
        vocabulary,
        outputs,
    )
    if compensation:
        _ = session.reference  # too few batches for it are refused before any pull
    return session


@stage("reading data")
def make_batches(settings: PruneConfig, task: Task, splits: dict[str, Dataset]) -> dict[str, Sequence[Batch]]:
    """Samples, encodes and collates: split -> batches; those that refits alone read are under `REFIT`."""
    batches: dict[str, Sequence[Batch]] = {}
    for split in over(list(splits), "encoding", "splits"):
        if split == "calibration":
            batches |= calibration_batches(settings.task, task, splits[split], settings.seed)
        else:
            batches[split] = evaluation_batches(settings.task, task, splits[split], settings.seed)
    return batches


def calibration_batches(settings: TaskConfig, task: Task, dataset: Dataset, seed: int) -> dict[str, Sequence[Batch]]:
    """Draws calibration data: batches that choices are made on, and under `REFIT` those that refits read as well."""
    count, further = settings.calibration_examples, settings.refit_examples
    if further is None:
        further = REFIT_SHARE * count if task.predicts_tokens or task.refits_read_more else 0
    encoded = encode_sample(task, dataset, count, seed, further)
    chosen, rest = encoded.select(range(min(count, len(encoded)))), range(count, len(encoded))
    return {
        "calibration": list(batches_of(task, chosen, settings.batch_size, equal=True)),  # read over and over
        REFIT: batches_of(task, encoded.select(rest), settings.batch_size) if rest else [],
    }


def affordable(
    settings: PruneConfig, task: Task, model: PreTrainedModel, example: Batch, batches: Sequence[Batch], seed: int
) -> Sequence[Batch]:
    """Lets as many tokens of a window count as the settings say, or else as cost no more than the layers do.

    A divergence takes two products with the head at each position that counts.
    """
    positions, head = settings.task.calibration_positions, large_head(model) if task.predicts_tokens else None
    if positions is None and head is not None:
        layers = count_macs(model, example) / example.length - head.weight.numel()  # of a token
        positions = max(1, int(example.length * layers / (2 * head.weight.numel())))
    everything = positions is not None and positions >= example.length
    return thinned(batches, None if everything else positions, seed)


@stage("loading model")
def load_model(
    settings: ModelConfig,
    task: TaskConfig,
    splits: Mapping[str, Dataset] | None = None,
    stored: PreTrainedConfig | None = None,
) -> tuple[PreTrainedModel, Processor]:
    """Loads the model with the head that the task needs, in the precision of the search, and its
    tokenizer or processor.

    Args:
        settings: Which model.
        task: Which task.
        splits: Split -> data that must suit the task; what does not is refused before the weights are loaded.
        stored: Its config, where that has been read.

    Raises:
        ValueError: If the model is quantised, an adapter, of an unknown family, has no head for the task or lacks
            weights, or if settings or data do not suit the task.
        OSError: If it does not exist.
    """
    origin, places, stored = _origin(settings), settings.places(), stored or stored_config(settings)
    unpacking = dequantising(stored, settings.name, settings.dequantize, settings.gguf_file, bool(places))
    family_of(stored)
    head = (stored.architectures or ["a model of unknown head"])[0]
    kind = task.type or task_for_model(head, stored)
    head = loaded_class(kind, head, stored)
    check_head(kind, head)
    processor = load_processor(TASKS.get(kind).processor_class, settings.name, **origin)
    suited = build_task(task, processor, stored, head)
    for split, dataset in (splits or {}).items():
        suited.check(dataset, split)
    dtype = torch.float32 if settings.dtype == "auto" else getattr(torch, settings.dtype)
    options = {**origin, **unpacking, "dtype": dtype}
    model = load_weights(TASKS.get(kind).auto_class, settings.name, places, **options)
    return model, processor


def stored_config(settings: ModelConfig) -> PreTrainedConfig:
    """Reads the config of the model that the settings name; errors as those of `load_config`."""
    return load_config(settings.name, **_origin(settings))


def _origin(settings: ModelConfig) -> dict[str, Any]:
    """Options of `from_pretrained` that say which files are meant, and whether code in them may run."""
    origin = {"revision": settings.revision, "trust_remote_code": settings.trust_remote_code}
    return origin | ({"gguf_file": settings.gguf_file} if settings.gguf_file else {})


def saved_precision(settings: ModelConfig, stored: PreTrainedConfig, searched: torch.dtype) -> torch.dtype:
    """Gives the precision of saved weights: that of the source checkpoint, unless the settings name one or its own is
    none that a model is computed in."""
    if settings.save_dtype != "auto":
        return getattr(torch, settings.save_dtype)
    return stored.dtype if isinstance(stored.dtype, torch.dtype) and stored.dtype.itemsize > 1 else searched
