"""A LoRA of the dense model carried over to the pruned one: `mabprune carry-adapter`."""

import copy
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel

from hf_mabprune.architectures import Site, architecture_of
from hf_mabprune.artifacts.run_folder import RunFolder
from hf_mabprune.artifacts.verification import read_parts
from hf_mabprune.checkpoints.adapters import register_lora_targets
from hf_mabprune.checkpoints.load import load_pruned
from hf_mabprune.checkpoints.processors import Processor
from hf_mabprune.checks import check_around
from hf_mabprune.compensation import make_compensation
from hf_mabprune.config import PruneConfig
from hf_mabprune.data.splits import load_splits
from hf_mabprune.effects.activations import moments
from hf_mabprune.evaluation.quality import evaluate, forward_of
from hf_mabprune.progress import stage
from hf_mabprune.runtime.accelerator import make_accelerator
from hf_mabprune.runtime.files import atomic_folder
from hf_mabprune.runtime.hashes import sha256_of_weights
from hf_mabprune.runtime.places import Protected, check_output_dir
from hf_mabprune.session import calibration_batches, load_model
from hf_mabprune.surgery.layers import layers_gone
from hf_mabprune.surgery.lora import A, B, Sides, kept_sides, sliced
from hf_mabprune.tasks.base import Task
from hf_mabprune.tasks.batch import Batch
from hf_mabprune.tasks.lookup import build_task
from hf_mabprune.tasks.sampling import batches_of, encode_sample

REMEDY = "pip install 'hf_mabprune[peft]'"
PREFIX = "base_model.model."
WEIGHTS = "adapter_model.safetensors"
Tensors = dict[str, torch.Tensor]
# Settings of a LoRA that make it something else than W + s B A of the base as it is.
OTHERWISE = (
    "use_dora", "lora_bias", "layer_replication", "target_parameters", "trainable_token_indices", "use_qalora",
    "use_bdlora", "kasa_config", "monteclora_config", "velora_config", "arrow_config", "alora_invocation_tokens",
)  # fmt: skip
PLAIN_STARTS = (True, False, "gaussian", "orthogonal", "eva")  # other ways to begin change the base


@dataclass(frozen=True)
class Carried:
    """What came of carrying a LoRA over.

    Attributes:
        modules: How many modules it goes to.
        cut: How many of them had lost outputs or inputs.
        refitted: How many of those were refitted as the run refitted their weights.
        kl: Mean divergence on the test split, in nats, of the pruned model with the LoRA from the dense one with it;
            None where the data were not read.
        kl_without: Of the two without it.
        kl_sliced: As `kl`, of the LoRA without refit; None where nothing was refitted.
    """

    modules: int
    cut: int
    refitted: int = 0
    kl: float | None = None
    kl_without: float | None = None
    kl_sliced: float | None = None

    def __str__(self) -> str:
        said = [f"{self.modules} modules, {self.cut} cut, {self.refitted} refitted"]
        if self.kl is not None:
            said.append(
                f"KL from the dense model, both with the LoRA: {self.kl:.4f} (both without: {self.kl_without:.4f})"
            )
        if self.kl_sliced is not None:
            said.append(f"without the refit of the LoRA: {self.kl_sliced:.4f}")
        return "; ".join(said)


@stage("export")
def carry_adapter(
    run: str | Path,
    adapter: str | Path,
    output: str | Path,
    settings: PruneConfig,
    dense: str | None = None,
    slice_alone: bool = False,
) -> Carried:
    """Carries a LoRA of the dense model over to the pruned one, and measures both.

    Rows of B and columns of A stay with those of the weights, which is exact where the run had no refit. Where it had
    one, A of a refitted output projection is refitted too: W' predicts what went of the inputs from what stays, so A'
    has to do the same, by the same method, on what the dense model with its LoRA lets flow there on calibration data.

    Args:
        run: Folder of the run.
        adapter: Folder or Hub name of the LoRA.
        output: New folder.
        settings: Settings of the run, with what is to be said of its data.
        dense: Folder or Hub name of the dense model, that of the settings when left out.
        slice_alone: Whether to read no data: no refit, nothing is measured.

    Raises:
        ValueError: If the run, the LoRA and the dense model do not go together, or the LoRA is of a kind that cannot
            be carried over.
        FileExistsError: If there is something at `output` already.
        OSError: If something cannot be read or written.
    """
    peft = _peft()
    parts, folder = read_parts(RunFolder(run), settings), Path(run)
    protected = [Protected("the run", folder, whole=True), Protected("the adapter", Path(adapter), whole=True)]
    check_output_dir(output, False, protected)
    check_around(output)
    config = peft.PeftConfig.from_pretrained(str(adapter))
    name = dense or settings.model.name
    _check(config, str(adapter), settings, dense)
    big, processor = load_model(settings.model.model_copy(update={"name": name}), settings.task)
    if parts.report.dense_sha256 and sha256_of_weights(big) != parts.report.dense_sha256:
        raise ValueError(f"{name} does not have the weights that the run pruned: name its dense model with --dense")
    big, small = big.float().eval(), load_pruned(folder, dtype=torch.float32).eval()
    factors, beside = _read(str(adapter))
    keep = parts.arms.kept_units(parts.kept)
    if layers_gone(big, keep)[0]:
        raise ValueError(f"{run} removed whole layers, after which modules have other names: no LoRA is carried over")
    paths = sorted({key.removesuffix(A) for key in factors if key.endswith(A)})
    sides = kept_sides(big, keep, parts.report.layout, paths)
    _check_sizes(small, sides, beside)
    carried = sliced(factors, sides)
    cut = [path for path, kept in sides.items() if _is_cut(big, path, kept)]
    result = Carried(len(sides), len(cut))
    if not slice_alone:
        data = _Data.of(settings, big, processor)
        full = with_lora(big, config, factors, beside)
        plain = data.kl(small, big)
        sliced_kl = data.kl(with_lora(small, config, carried, beside), full)
        changed = (parts.report.compensation or {}).get("changed", [])
        refitted = _refit(changed, settings, full, data, factors, sides)
        carried |= refitted
        kl = data.kl(with_lora(small, config, carried, beside), full) if refitted else sliced_kl
        result = Carried(len(sides), len(cut), len(refitted), kl, plain, sliced_kl if refitted else None)
    with atomic_folder(output) as place:
        config.base_model_name_or_path = str(run)
        config.save_pretrained(str(place))
        stored = {f"{PREFIX}{key}": tensor.contiguous() for key, tensor in (*carried.items(), *beside.items())}
        save_file(stored, place / WEIGHTS, metadata={"format": "pt"})
    return result


@dataclass(frozen=True)
class _Data:
    """What both models read: the batches that refits are made from, and the test split."""

    task: Task
    calibration: Sequence[Batch]
    test: Sequence[Batch]

    @classmethod
    def of(cls, settings: PruneConfig, dense: PreTrainedModel, processor: Processor) -> "_Data":
        """Reads the data of a run."""
        splits, own = load_splits(settings.task, settings.seed), settings.task
        task = build_task(own, processor, dense.config, type(dense).__name__)
        test = encode_sample(task, splits["test"], own.evaluation_examples, settings.seed)
        calibration = calibration_batches(own, task, splits["calibration"], settings.seed)["calibration"]
        return cls(task, calibration, batches_of(task, test, own.batch_size, by_length=True))

    def kl(self, model: PreTrainedModel, reference: PreTrainedModel) -> float:
        """Gives the mean divergence of a model from another one on the test split."""
        forwards = (forward_of(each, self.task, self.test) for each in (model, reference))
        first, second = forwards
        found = evaluate(first, self.task, self.test, make_accelerator(), second, intervals=False)
        return float(found.kl.mean())


def _peft() -> Any:
    if find_spec("peft") is None:
        raise ValueError(f"carry-adapter needs peft, not installed here: {REMEDY}")
    return import_module("peft")


def _check(config: Any, adapter: str, settings: PruneConfig, dense: str | None) -> None:
    """Refuses what is no plain LoRA, and one of another model."""
    kind = getattr(config.peft_type, "value", config.peft_type)
    if kind != "LORA":
        raise ValueError(f"{adapter} is a {kind} adapter; only a LoRA can be carried over")
    if odd := next((name for name in OTHERWISE if getattr(config, name, None)), None):
        raise ValueError(f"{adapter} has {odd}; only a plain LoRA, W + s B A, can be carried over")
    if config.bias != "none":
        raise ValueError(
            f"{adapter} trained biases (bias: {config.bias}); only one with bias none can be carried over"
        )
    if config.init_lora_weights not in PLAIN_STARTS:
        raise ValueError(
            f"{adapter} began with init_lora_weights {config.init_lora_weights!r}, which changes the base; save it "
            "with path_initial_model_for_weight_conversion first, which makes a plain LoRA of it"
        )
    base, model = config.base_model_name_or_path, settings.model.name
    if dense is None and base and base != model:
        raise ValueError(
            f"{adapter} is of {base}, the run pruned {model}: if that is the same model, say so with --dense {base}"
        )
    if settings.prune.vocabulary:
        raise ValueError("the run cut the vocabulary before the search: its dense model is not the one of the LoRA")


def _read(adapter: str) -> tuple[Tensors, Tensors]:
    """Reads factors, and weights that were trained whole, by the paths of the model."""
    from peft.utils import load_peft_weights

    found = {key.removeprefix(PREFIX): value for key, value in load_peft_weights(adapter, device="cpu").items()}
    factors = {key: tensor.float() for key, tensor in found.items() if key.endswith((A, B))}
    if not factors:
        raise ValueError(f"{adapter} holds no factors of a LoRA ({A.removeprefix('.')})")
    return factors, {key: tensor for key, tensor in found.items() if key not in factors}


def _check_sizes(small: PreTrainedModel, sides: Mapping[str, Sides], beside: Tensors) -> None:
    """Refuses what does not fit the pruned model."""
    shapes = {name: list(tensor.shape) for name, tensor in small.state_dict().items()}
    for path, kept in sides.items():
        size = [len(kept.outputs), len(kept.inputs)]
        if sorted(shapes.get(f"{path}.weight", [])) != sorted(size):
            raise ValueError(f"{path} has no weight of {size} in the pruned model: it is not what its report says")
    for key, tensor in beside.items():
        if shapes.get(key) != list(tensor.shape):
            raise ValueError(
                f"{key} was trained whole, {list(tensor.shape)}, and is {shapes.get(key)} now: not carried"
            )


def _is_cut(dense: PreTrainedModel, path: str, kept: Sides) -> bool:
    return len(kept.outputs) * len(kept.inputs) < dense.get_parameter(f"{path}.weight").numel()


def with_lora(model: PreTrainedModel, config: Any, factors: Tensors, beside: Tensors) -> PreTrainedModel:
    """Copies a model with a LoRA merged into it.

    Args:
        model: Model of any sizes.
        config: `LoraConfig` of the LoRA.
        factors: Module + `.lora_A.weight` or `.lora_B.weight` -> factor, of the model's sizes.
        beside: Name -> weight that was trained whole.
    """
    from peft import get_peft_model, set_peft_model_state_dict

    register_lora_targets()
    own = copy.deepcopy(config)
    own.base_model_name_or_path = None  # a warning, where it is another name
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        wrapped: Any = get_peft_model(copy.deepcopy(model), own)
        set_peft_model_state_dict(wrapped, {f"{PREFIX}{key}": tensor for key, tensor in (factors | beside).items()})
        merged: PreTrainedModel = wrapped.merge_and_unload()
    return merged.eval()


def _refit(
    changed: Collection[str],
    settings: PruneConfig,
    full: PreTrainedModel,
    data: _Data,
    factors: Tensors,
    sides: Mapping[str, Sides],
) -> Tensors:
    """Refits A of the output projections that the run has refitted.

    The refit of a projection, W' near W h on x = h_S, goes output by output, so that rows of A beside those of W are
    refitted by the same least squares: y = A h, E[y x'] = A E[h x'].
    """
    if settings.compensation is None:
        return {}
    prefix, method = f"{full.base_model_prefix}.", make_compensation(settings.compensation)
    sites: dict[str, Site] = {}
    for site in architecture_of(full).sites(full):
        path = next((each for each in (prefix + site.name, site.name) if each in sides), None)
        if path and f"{path}.weight" in changed and len(sides[path].inputs) < site.columns:
            sites[path] = site
    found = moments(full, data.task, data.calibration, list(sites.values()))
    refitted = {}
    for path, site in sites.items():
        kept, second = sides[path].inputs, found[site.name].second.double()
        a = factors[path + A].double()
        fitted = method.fit(a[:, kept], second[kept][:, kept], a @ second[:, kept], site.unit_size)
        refitted[path + A] = fitted.to(factors[path + A].dtype)
    return refitted
