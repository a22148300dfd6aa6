"""Other pruning tools beside ours. A peer chooses the neurons and heads that stay; cutting, refitting and measuring
are the same for all. It works on a copy of the model, and its choice is read off the weights that the copy has left.

Peers take single neurons where ours go in blocks, and know no floors.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from hf_mabprune.architectures import Site, architecture_of
from hf_mabprune.architectures.sites import GROUPS, UNITS
from hf_mabprune.arms import Ints, KeepIndices
from hf_mabprune.progress import over
from hf_mabprune.registry import option
from hf_mabprune.tasks.base import Task
from hf_mabprune.tasks.batch import Batch


@dataclass(kw_only=True)
class Peer(ABC):
    """A pruning tool that is not ours.

    Attributes:
        package: Package that has to be installed, by its name in Python.
        removes: Parts that a target may name.
    """

    package: ClassVar[str]
    removes: ClassVar[tuple[str, ...]] = ("neurons", "heads")

    def check(self, fractions: Mapping[str, float]) -> None:
        """Raises ValueError if the tool is missing, or cannot remove what is asked for, e.g. {"neurons": 0.5}."""
        if other := fractions.keys() - set(self.removes):
            raise ValueError(f"peer {self.package} removes {' and '.join(self.removes)}, not {', '.join(other)}")
        if find_spec(self.package) is None:
            raise ValueError(f"peer {self.package} is not installed: pip install 'hf_mabprune[peers]'")

    def keep(
        self, model: PreTrainedModel, task: Task, batches: Sequence[Batch], fractions: Mapping[str, float]
    ) -> KeepIndices:
        """Finds what the tool keeps of a model.

        Args:
            model: The dense model, which is left as it is.
            task: Task that reads its outputs.
            batches: Calibration data.
            fractions: Name -> fraction that goes, e.g. {"neurons": 0.5, "heads": 0.25}.

        Raises:
            ValueError: As `check`.
        """
        self.check(fractions)
        small = self._pruned(copy.deepcopy(model).eval(), task, batches, fractions)
        kept: dict[str, Ints] = {}
        for site in architecture_of(model).sites(model):
            path = _feeding(site, UNITS)[0]
            weights = (_at(version, path).weight for version in (model, small))
            kept[site.name] = np.unique(_rows_left(*weights) // site.unit_size)
        return kept

    def passes(self) -> tuple[int, int]:
        """Gives the forward and backward passes over the calibration data."""
        return 0, 0

    @abstractmethod
    def _pruned(
        self, model: PreTrainedModel, task: Task, batches: Sequence[Batch], fractions: Mapping[str, float]
    ) -> Any:
        """The model, pruned in place or anew."""


@dataclass(kw_only=True)
class TorchPruning(Peer):
    """Torch-Pruning's BasePruner (Fang et al. 2023, DepGraph, arXiv 2301.12900) with head pruning."""

    package: ClassVar[str] = "torch_pruning"
    importance: Literal["magnitude", "taylor"] = option("taylor", "GroupMagnitudeImportance or GroupTaylorImportance")
    everywhere: bool = option(False, "rank over all layers, not within each")

    def __post_init__(self) -> None:
        if self.importance not in ("magnitude", "taylor"):
            raise ValueError(f"importance must be magnitude or taylor, got {self.importance!r}")

    def passes(self) -> tuple[int, int]:
        return (1, 1) if self.importance == "taylor" else (0, 0)

    def _pruned(
        self, model: PreTrainedModel, task: Task, batches: Sequence[Batch], fractions: Mapping[str, float]
    ) -> PreTrainedModel:
        import torch_pruning

        sites = architecture_of(model).sites(model)
        if any(site.group > 1 for site in sites):
            raise ValueError("peer torch_pruning: no heads that share keys and values")
        model.config._attn_implementation = "eager"  # its tracer reads the graph of autograd
        pruner = self._pruner(torch_pruning, model, sites, task.inputs(batches[0].to(model.device)), fractions)
        if self.importance == "taylor":
            model.zero_grad()
            for batch in over(batches, "gradients"):
                task.readout(model, batch.to(model.device)).losses().mean().backward()
        for group in pruner.step(interactive=True):
            group.prune()
        return model

    def _pruner(
        self,
        torch_pruning: Any,
        model: PreTrainedModel,
        sites: Sequence[Site],
        inputs: Batch,
        fractions: Mapping[str, float],
    ) -> Any:
        """The tool's pruner, which may touch nothing but neurons and whole heads."""
        ways = {kind: fractions.get(f"{kind}s", 0.0) for kind in ("neuron", "head")}
        inner = {kind: _inner(model, sites, kind) for kind in ways}
        cut = {_at(model, path) for site in sites for path in _feeding(site, UNITS, GROUPS)}
        ratios: dict[Any, float] = {linear: ways[kind] for kind in ways for linear in inner[kind]}
        if self.everywhere:
            ratios = {tuple(inner[kind]): ways[kind] for kind in ways}
        return torch_pruning.pruner.BasePruner(
            model,
            inputs,
            _importance(torch_pruning, self.importance),
            global_pruning=self.everywhere,
            pruning_ratio=0.0,
            pruning_ratio_dict=ratios,
            num_heads={_at(model, path): site.units for site in sites for path in _head_paths(site)},
            prune_num_heads=ways["head"] > 0,
            prune_head_dims=False,
            head_pruning_ratio=ways["head"],
            head_pruning_ratio_dict=dict.fromkeys(inner["head"], ways["head"]),
            ignored_layers=[other for other in _layers_with_weights(model) if other not in cut],
            forward_fn=lambda traced, inputs: traced(**inputs).logits,
            output_transform=lambda logits: logits.sum(),
        )


@dataclass(kw_only=True)
class OptiPFair(Peer):
    """OptiPFair's pruning of gated FFNs, the same number of neurons in every layer."""

    package: ClassVar[str] = "optipfair"
    removes: ClassVar[tuple[str, ...]] = ("neurons",)
    method: Literal["MAW", "VOW", "PON", "L2"] = option("MAW", "how neurons are ranked, by weights alone")

    def _pruned(
        self, model: PreTrainedModel, task: Task, batches: Sequence[Batch], fractions: Mapping[str, float]
    ) -> Any:
        from optipfair.pruning.mlp_glu import prune_model_mlp_glu

        percentage = 100 * fractions["neurons"]
        return prune_model_mlp_glu(
            model, neuron_selection_method=self.method, pruning_percentage=percentage, show_progress=False
        )


PEERS: dict[str, type[Peer]] = {"torch_pruning": TorchPruning, "optipfair": OptiPFair}


def _importance(torch_pruning: Any, name: str) -> Any:
    if name == "taylor":
        return torch_pruning.importance.GroupTaylorImportance()
    return torch_pruning.importance.GroupMagnitudeImportance(p=2)


def _inner(model: PreTrainedModel, sites: Sequence[Site], kind: str) -> list[nn.Linear]:
    """The projections whose output rows are units."""
    return [_at(model, path) for site in sites if site.kind == kind for path in _feeding(site, UNITS)]


def _layers_with_weights(model: PreTrainedModel) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, nn.Linear | nn.Embedding)]


def _head_paths(site: Site) -> Sequence[str]:
    return _feeding(site, UNITS) if site.kind == "head" else ()


def _feeding(site: Site, *parts: str) -> list[str]:
    """Paths of the projections that have one block of rows a unit, or a group, of a site."""
    return [site.prefix + rows.path for rows in site.spec.rows if rows.parts[0] in parts]


def _at(model: PreTrainedModel, path: str) -> nn.Linear:
    module = model.base_model.get_submodule(path)
    assert isinstance(module, nn.Linear)
    return module


def _rows_left(whole: torch.Tensor, left: torch.Tensor) -> Ints:
    """Numbers of the rows of a weight that another one still has."""
    places = {row.tobytes(): number for number, row in enumerate(whole.detach().cpu().numpy())}
    return np.array(sorted(places[row.tobytes()] for row in left.detach().cpu().numpy()), dtype=np.int64)
