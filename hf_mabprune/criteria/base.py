"""The contract of a criterion: from weights, activations and gradients to one score an arm, without pulls.

A score says what removing the arm costs: low = safe to remove. Scores add up over the columns or units of an arm, so
that blocks, heads and key-value groups compare by score per cost where a budget counts parameters or MACs; criteria
whose scores do not add up (`per_cost` false) compare as they are.
Symbols: K arms; N calibration examples in n batches; D hidden, C columns of an output projection W [D, C], F neurons
or H * Dh; h its input, over all positions that are not padding; S the columns of one arm; m gates.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from hf_mabprune.architectures import Site, architecture_of, linear_at
from hf_mabprune.arms import ArmTable
from hf_mabprune.effects.activations import Moments, moments, watch_inputs
from hf_mabprune.effects.gradients import estimate
from hf_mabprune.effects.kfac import KfacFactors, kfac_factors
from hf_mabprune.registry import Registry
from hf_mabprune.selection.plan import Plan
from hf_mabprune.tasks.base import Batch, Task

CRITERIA: Registry[type["Criterion"]] = Registry("criterion", "hf_mabprune.criteria")

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class CalibrationStatistics:
    """What criteria are made from; each statistic is computed when it is first asked for, and kept.

    Every process of a launch computes the same, so that nothing depends on how many there are. The model is neither
    changed nor given gradients.

    Attributes:
        model: The dense model, in evaluation mode.
        batches: Of calibration data.
        seed: Of everything random.
    """

    model: PreTrainedModel
    arms: ArmTable
    task: Task
    batches: Sequence[Batch]
    seed: int = 0

    @cached_property
    def sites(self) -> list[tuple[Site, Ints]]:
        """Every site that has arms, with its arms in the order of their columns."""
        places = {(site.kind, site.layer): site for site in architecture_of(self.model).sites(self.model)}
        return [(places[kind, layer], rows) for kind, layer, rows in self.arms.groups()]

    @cached_property
    def moments(self) -> dict[str, Moments]:
        """Moments of each site's input, by the path of its output projection; one forward pass a batch."""
        return moments(self.model, self.task, self.batches, [site for site, _ in self.sites])

    @property
    def kfac_factors(self) -> dict[str, KfacFactors]:
        """KfacFactors of the KL divergence at each site's output projection, by its path; one forward pass a batch."""
        return self._curved[0]

    @property
    def kfac_passes(self) -> int:
        """Backward passes a batch that the kfac_factors took."""
        return self._curved[1]

    @cached_property
    def _curved(self) -> tuple[dict[str, KfacFactors], int]:
        return kfac_factors(self.model, self.task, self.batches, [site for site, _ in self.sites], self.seed)

    @cached_property
    def magnitudes(self) -> dict[str, Floats]:
        """[C] a site: sum over sequences of (mean over positions of |h|)^2; one forward pass a batch."""
        sums: dict[str, torch.Tensor] = {}

        def see(site: Site, hidden: torch.Tensor, counted: torch.Tensor) -> None:
            total = (hidden.double().abs() * counted.unsqueeze(-1)).sum(1)
            mean = total / counted.sum(1, keepdim=True).clamp(min=1)
            sums[site.output] = sums.get(site.output, 0) + mean.square().sum(0)

        watch_inputs(self.model, self.task, self.batches, [site for site, _ in self.sites], see)
        return {path: found.cpu().numpy() for path, found in sums.items()}

    @cached_property
    def example_gradients(self) -> Floats:
        """[K, N], dL_i/dm_a, L_i the loss of example i, m_a the one gate of all units of arm a; a backward a batch."""
        return np.concatenate([self._gradients_on(batch) for batch in self.batches], axis=1)

    @cached_property
    def gradients(self) -> Floats:
        """[K, n], the same of the mean loss of each batch."""
        sizes = [len(batch["input_ids"]) for batch in self.batches]
        return np.add.reduceat(self.example_gradients, np.cumsum([0, *sizes[:-1]]), axis=1) / sizes

    def weight(self, path: str) -> Floats:
        """[out, in], the weight of a projection of the base model."""
        return linear_at(self.model, path).weight.detach().double().cpu().numpy()

    def sums(self, values: Callable[[Site], Floats]) -> Floats:
        """[K], for each arm the sum of `values(site)` over what is its own; see `sums_at`."""
        found = np.empty(len(self.arms))
        for site, rows in self.sites:
            found[rows] = self.sums_at(site, rows, values(site))
        return found

    def sums_at(self, site: Site, rows: Ints, values: Floats) -> Floats:
        """Sums over the arms of one site.

        Args:
            values: One for each column of the output projection, or each output row of a projection that feeds it.
        """
        return np.add.reduceat(values, self.arms.start[rows] * len(values) // site.units)

    def _gradients_on(self, batch: Batch) -> Floats:
        inputs = {name: tensor.to(self.model.device) for name, tensor in batch.items()}
        return estimate(self.model, self.arms, self.task, inputs, "loss")[0].cpu().numpy()


@dataclass(kw_only=True)
class Criterion(ABC):
    """A ranking of arms for removal.

    Attributes:
        per_cost: Whether arms compare by score per cost where a budget counts parameters or MACs.
    """

    per_cost: ClassVar[bool] = True

    @abstractmethod
    def scores(self, statistics: CalibrationStatistics) -> Floats:
        """[K], low = safe to remove."""

    def choose(self, statistics: CalibrationStatistics, plan: Plan) -> tuple[Bools, Ints]:
        """Removes what a plan asks for, lowest scores first; its floors hold.

        Args:
            plan: Over the arms of the statistics.

        Returns:
            kept, [K], and the order of removal, [K]: first the arms that go, then those that stay, safest first.

        Raises:
            ValueError: If a score is not finite.
        """
        scores = self.scores(statistics)
        if not np.isfinite(scores).all():
            raise ValueError(
                f"the scores of {type(self).__name__} are not finite for {int((~np.isfinite(scores)).sum())} of "
                f"{len(scores)} arms: look for broken calibration examples or weights, or use dtype float32"
            )
        rewards = -scores if self.per_cost else -scores * plan.cost()
        kept, removed = plan.choose(rewards, np.ones(len(scores), dtype=bool))
        stay = np.flatnonzero(kept)
        return kept, np.concatenate([removed, stay[np.argsort(-(rewards / plan.cost())[stay], kind="stable")]])
