"""What tests of several rooms share: small problems with all that pulls need, made-up arms, and small runs."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedModel

from hf_mabprune.architectures import Site, architecture_of, projection_of
from hf_mabprune.architectures.cost import arm_table
from hf_mabprune.architectures.stock import sizes_of_field
from hf_mabprune.arms import WITHIN, ArmTable, Ints
from hf_mabprune.cli.settings import REGISTRIES
from hf_mabprune.config import PruneConfig, check
from hf_mabprune.effects.pulls import Pulls
from hf_mabprune.effects.pulls.replay import ReplayPulls
from hf_mabprune.selection.target import Limits
from hf_mabprune.surgery.cut import Layout
from hf_mabprune.tasks.base import Task
from hf_mabprune.tasks.batch import LABELS, Batch, typical_example
from hf_mabprune.tasks.readout import Readout
from tests.seeds import moved
from tests.tasks.tiny_tasks import make_tokenizer, task_of
from tests.tiny_models import head_of, keep_for, tiny_model

LETTERS = "abcdefghij"
SPLITS = ("train", "validation", "test")
QUICK = {"name": "least_squares", "bottom_up": False, "guard": False}  # a refit for tests of something else


class Plainly:
    """Stands in for the tasks of images and of sequences to sequences: all logits count, each for its label."""

    forward_options: ClassVar[dict[str, Any]] = {}
    predicts_tokens: ClassVar[bool] = False
    inputs, logits, readout = Task.inputs, Task.logits, Task.readout

    def __init__(self, one_position: bool) -> None:
        self.reads_one_position = one_position

    def run(self, model: PreTrainedModel, batch: Batch, **options: Any) -> tuple[Readout, Any]:
        """As `Task.run`, with inputs in the precision of the model."""
        own = Batch((name, each.to(model.dtype) if each.is_floating_point() else each) for name, each in batch.items())
        return Task.run(self, model, own, **options)  # type: ignore[arg-type]

    def read(self, logits: torch.Tensor, batch: Batch) -> Readout:
        """[B, C], one position an example, or [B, P, C]."""
        labels = batch[LABELS]
        return Readout(logits.view(*labels.view(len(labels), -1).shape, -1), labels.view(len(labels), -1))


def problem(model_type: str, **changes: object) -> tuple[PreTrainedModel, Task, list[Batch], ArmTable]:
    """Gives a tiny model with its task, three batches, padded where that can be, and all its arms."""
    head = head_of(model_type)
    model = tiny_model(model_type, head, **changes)
    if head in ("AutoModelForCausalLM", "AutoModelForSequenceClassification"):
        task: Any = task_of(model, make_tokenizer("plain" if head.endswith("CausalLM") else "pair"))
    else:
        task = Plainly(head.endswith("Classification"))
    generator = torch.Generator().manual_seed(moved(3))
    batches = [_batch(model, head, generator) for _ in range(3)]
    return model, task, batches, arms_of(model, 16, batches)


def _batch(model: PreTrainedModel, head: str, generator: torch.Generator) -> Batch:
    """Four examples."""

    def draw(low: int, high: int, *shape: int) -> torch.Tensor:
        return torch.randint(low, high, shape, generator=generator)

    ids = draw(3, 16, 4, 7)
    attention = torch.ones_like(ids)
    if head in ("AutoModelForCausalLM", "AutoModelForImageTextToText"):
        return Batch(input_ids=ids, attention_mask=attention, labels=ids.clone())
    ids[0, 5:], attention[0, 5:] = 0, 0
    shapes = {"pixel_values": (3, 16, 16), "input_values": (128,), "input_features": (8, 40)}
    kind = model.main_input_name if head != "AutoModelForImageClassification" else "pixel_values"
    inputs = {"input_ids": ids, "attention_mask": attention}
    if kind in shapes:
        inputs = {kind: torch.randn(4, *shapes[kind], generator=generator)}
    if head.endswith("Classification"):
        return Batch(**inputs, labels=draw(0, 2, 4))
    decoded, labels = draw(3, 16, 4, 5), draw(3, 16, 4, 5)
    counted = torch.ones_like(decoded)
    decoded[1, 3:], counted[1, 3:], labels[1, 3:] = 0, 0, -100
    return Batch(**inputs, decoder_input_ids=decoded, decoder_attention_mask=counted, labels=labels)


def unasked() -> tuple[PreTrainedModel, Task, list[Batch]]:
    """A mixtral with more experts than its batches have positions for: to many of them none is sent."""
    model = tiny_model("mixtral", head_of("mixtral"), num_local_experts=32)
    generator = torch.Generator().manual_seed(moved(0))
    ids = [torch.randint(3, 16, (2, 4), generator=generator) for _ in range(3)]
    batches = [Batch(input_ids=each, attention_mask=torch.ones_like(each), labels=each.clone()) for each in ids]
    return model, task_of(model, make_tokenizer("plain")), batches


def arms_of(model: PreTrainedModel, block: int, batches: Sequence[Batch], kinds: Sequence[str] = WITHIN) -> ArmTable:
    """All arms of a model, neurons in blocks, with costs over one example of such batches."""
    return arm_table(model, list(kinds), block, typical_example(batches))


def some_context(arms: ArmTable) -> np.ndarray:
    """Gives a mask of kept arms, [K], in which three are gone."""
    kept = np.ones(len(arms), dtype=bool)
    kept[[1, 4, len(arms) - 1]] = False
    return kept


def pull_all(pulls: Pulls, kept: np.ndarray) -> np.ndarray:
    """Pulls every kept arm on the first and the third batch."""
    pulls.set_context(kept)
    arms = np.flatnonzero(kept)
    return pulls.pull(np.repeat(arms, 2), np.tile([0, 2], len(arms)))


def pull_some(pulls: Pulls, kept: np.ndarray, each: int = 4) -> np.ndarray:
    """Pulls at most `each` kept arms of every site on the first and the third batch."""
    pulls.set_context(kept)
    rows = [rows[kept[rows]] for _, rows in pulls.arms.groups()]
    arms = np.concatenate([own[np.unique(np.linspace(0, len(own) - 1, each).astype(int))] for own in rows if len(own)])
    return pulls.pull(np.repeat(arms, 2), np.tile([0, 2], len(arms)))


def rounding(model: PreTrainedModel) -> float:
    """Says how far two ways to the same numbers may end up apart in float64.

    Norms of their own kind and routers work in float32 all the same: what differs in the last digit of a float64 there
    may differ in the last digit of a float32 behind it.
    """
    norms = [module for module in model.modules() if type(module).__name__.endswith("Norm")]
    return 1e-13 if all(isinstance(norm, torch.nn.LayerNorm) for norm in norms) else 1e-8


def small_effects(model_type: str) -> ReplayPulls:
    """Gives pulls on a tiny model whose sites hardly matter, so that second order is all there is."""
    model, task, batches, arms = problem(model_type)
    model.double()
    shrink(model, 1e-2)
    return ReplayPulls(model, arms, task, batches)


def shrink(model: PreTrainedModel, factor: float) -> None:
    """Scales the output projections of all sites down."""
    for site in architecture_of(model).sites(model):
        if site.kind != "expert":  # whose projections are those of its neurons
            projection = projection_of(model, site)
            projection.write(projection.weight * factor)


def example_of(tokens: int) -> Batch:
    """One sequence of so many tokens."""
    ids = torch.ones(1, tokens, dtype=torch.long)
    return Batch(input_ids=ids, attention_mask=ids)


def selection(model: PreTrainedModel, layout: Layout) -> dict[str, Ints]:
    """Gives random keep indices that a layout can say: of what a stock config cannot say fewer all stay."""
    if layout == "per_layer":
        return keep_for(model, layout)
    kinds: dict[str, list[Site]] = {}
    for site in architecture_of(model).sites(model):
        kinds.setdefault(site.kind, []).append(site)
    said = [kind for kind, sites in kinds.items() if kind == "expert" or sizes_of_field(model, sites)]
    return keep_for(model, layout, kinds=said)


def table(
    neurons: Sequence[Sequence[int]] = (),
    heads: Sequence[Sequence[int]] = (),
    parameters: tuple[int, int] = (1, 1),
    macs: tuple[int, int] = (1, 1),
) -> ArmTable:
    """Makes up arms of the given units, layer by layer; costs are per arm, of neurons and of heads.

    The site of the neurons of layer 3 is `neuron.3`.
    """
    rows = []
    for kind, layers, cost, work in (
        ("neuron", neurons, parameters[0], macs[0]),
        ("head", heads, parameters[1], macs[1]),
    ):
        for layer, units in enumerate(layers):
            stops = np.cumsum(units)
            rows += [
                (f"{kind}.{layer}", kind, layer, index, stop - size, stop, cost, work)
                for index, (size, stop) in enumerate(zip(units, stops, strict=True))
            ]
    site, kind, *numbers = zip(*rows, strict=True)
    return ArmTable(np.array(site), np.array(kind), *(np.array(column, dtype=np.int64) for column in numbers))


def limits(arms: ArmTable, neurons: int = 1, heads: int = 1, layout: str = "per_layer", sizes: Any = None) -> Limits:
    """Gives floors by kind; under `uniform` all sites of a kind keep one size, one of those given by kind; else the
    experts of a layer do. Two experts stay, which every position is sent to."""
    floors = {"neuron": neurons, "head": heads, "expert": 2}
    kinds = {site: str(arms.kind[rows[0]]) for site, rows in arms.groups()}
    ties = kinds if layout == "uniform" else {site: site.rpartition(".")[0] for site in kinds if ".experts." in site}
    return Limits({site: floors[kind] for site, kind in kinds.items()}, ties, sizes or {})


def whole(arms: ArmTable) -> np.ndarray:
    """Gives the mask that keeps every arm, [K]."""
    return np.ones(len(arms), dtype=bool)


def sentences(count: int, seed: int) -> dict[str, list[Any]]:
    """Makes up texts of two to seven letters, labelled by whether the number of a's is odd."""
    rng = np.random.default_rng(moved(seed))
    texts = [" ".join(rng.choice(list(LETTERS), int(rng.integers(2, 8)))) for _ in range(count)]
    return {"sentence": texts, "label": [text.count("a") % 2 for text in texts]}


def write_splits(folder: Path) -> dict[str, str]:
    """Writes 48 sentences for each split; split -> parquet file."""
    paths = {split: str(folder / f"{split}.parquet") for split in SPLITS}
    for seed, path in enumerate(paths.values()):
        Dataset.from_dict(sentences(48, seed)).to_parquet(path)
    return paths


def settings_for(folder: Path, files: dict[str, str], model_type: str, **changes: Any) -> PruneConfig:
    """Saves a tiny model with its tokenizer and describes a small run on it, which ends in `folder / "out"`."""
    classifier = model_type == "bert"
    head = "AutoModelForSequenceClassification" if classifier else "AutoModelForCausalLM"
    tiny_model(model_type, head).save_pretrained(folder / "model")
    make_tokenizer("pair" if classifier else "plain").save_pretrained(folder / "model")
    text = {} if classifier else {"columns": {"text": "sentence"}, "max_length": 8}
    base: dict[str, Any] = {
        "model": {"name": str(folder / "model")},
        "task": {
            "dataset": {"path": "parquet", "data_files": files},
            "splits": {"test": "test"},
            "batch_size": 8,
            **text,
        },
        "prune": {"target": {"neurons": 0.5, "heads": 0.5}, "block_size": 8, "layout": "per_layer"},
        "search": {"rounds": 2, "pulls_per_arm": 2},
        "output": {"dir": str(folder / "out"), "random_seeds": 2},
    }
    for part, values in changes.items():
        base[part] = {**base[part], **values} if part in base and isinstance(values, dict) else values
    return check(base)


@contextmanager
def apart(folder: Path) -> Iterator[None]:
    """Lets go, at the end, of what plugins from a folder have registered."""
    before = {kind: {name: registry.get(name) for name in registry.names()} for kind, registry in REGISTRIES.items()}
    try:
        yield
    finally:
        for kind, registry in REGISTRIES.items():
            registry._entries = before[kind]
        for name, module in list(sys.modules.items()):
            if str(getattr(module, "__file__", "")).startswith(str(folder)):
                del sys.modules[name]
