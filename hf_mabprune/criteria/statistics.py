"""What criteria are made from: weights, activations and gradients of the dense model on calibration data.

Symbols: K arms; N calibration examples in n batches; D hidden, C columns of an output projection W [D, C], F neurons
or H * Dh; h its input, over all positions that are not padding; m_a the one gate that multiplies all units of arm a.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from hf_mabprune.architectures import Site, architecture_of, projection_of
from hf_mabprune.architectures.projections import rows_of
from hf_mabprune.architectures.sites import members, part_at
from hf_mabprune.arms import ArmTable
from hf_mabprune.effects import activations, kfac
from hf_mabprune.effects.activations import Moments, mean_cosines, moments, watch_inputs
from hf_mabprune.effects.gradients import estimate
from hf_mabprune.effects.kfac import KfacFactors, kfac_factors
from hf_mabprune.effects.reserve import Reserve
from hf_mabprune.effects.routed import Routed, sent_to_experts
from hf_mabprune.progress import over
from hf_mabprune.tasks.base import Task
from hf_mabprune.tasks.batch import Batch

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Statistic = TypeVar("Statistic")


class BySite(Mapping[str, Statistic], Generic[Statistic]):
    """Statistics by name of the site, taken when asked for, of as many sites at a time as there is room for.

    Those of a group give way to the next group's: what reads them goes from site to site.

    Args:
        groups: Sites that share a pass.
        take: Function that takes the statistics of a group.
    """

    def __init__(
        self, groups: Sequence[Sequence[Site]], take: Callable[[Sequence[Site]], dict[str, Statistic]]
    ) -> None:
        self.groups, self.take = groups, take
        self._taken: dict[str, Statistic] = {}

    def __getitem__(self, name: str) -> Statistic:
        if name not in self._taken:
            group = next((group for group in self.groups if any(site.name == name for site in group)), None)
            if group is None:
                raise KeyError(name)
            self._taken = {}
            self._taken = self.take(group)
        return self._taken[name]

    def __iter__(self) -> Iterator[str]:
        return (site.name for group in self.groups for site in group)

    def __len__(self) -> int:
        return sum(map(len, self.groups))


@dataclass(frozen=True, eq=False)
class CalibrationStatistics:
    """Computes each statistic of the dense model when a criterion first asks for it, and keeps it for the next.

    Every process of a launch computes the same, so that nothing depends on how many there are. The model is neither
    changed nor given gradients.

    Attributes:
        model: Dense model, in evaluation mode.
        arms: All arms that are scored.
        task: Gives the logits that count and their targets.
        batches: Mini-batches of calibration data.
        seed: Seed of everything random.
        reserve: Memory of the run.
    """

    model: PreTrainedModel
    arms: ArmTable
    task: Task
    batches: Sequence[Batch]
    seed: int = 0
    reserve: Reserve = field(default_factory=Reserve, repr=False)

    def scored(self, name: str, score: Callable[[], Floats]) -> Floats:
        """Gives the scores of a criterion, [K], computed once.

        Args:
            name: Of the criterion, with its options.
            score: Computes them.
        """
        if name not in self._scored:
            self._scored[name] = score()
        return self._scored[name]

    @cached_property
    def _scored(self) -> dict[str, Floats]:
        return {}

    @cached_property
    def sites(self) -> list[tuple[Site, Ints]]:
        """Every site that has arms, with its arms in the order of their columns."""
        places = {site.name: site for site in self.all_sites}
        return [(places[name], rows) for name, rows in self.arms.groups()]

    @cached_property
    def all_sites(self) -> list[Site]:
        """Every site of the model; a layer that can go is one."""
        architecture = architecture_of(self.model)
        return [*architecture.sites(self.model), *architecture.whole_layers(self.model)]

    @cached_property
    def seen(self) -> list[Site]:
        """The sites whose inputs and projections arms are judged by: an expert by its own neurons."""
        return list({part.name: part for site, _ in self.sites for part in members(site, self.all_sites)}.values())

    @cached_property
    def moments(self) -> Mapping[str, Moments]:
        """Moments of each site's input, by its name; one forward pass a batch, if there is room for all sites."""
        groups = self.reserve.groups(self.seen, partial(activations.bytes_of, self.model))
        return BySite(list(groups), lambda sites: moments(self.model, self.task, self.batches, sites))

    @cached_property
    def kfac_factors(self) -> Mapping[str, KfacFactors]:
        """KfacFactors of the KL divergence at each site's output projection, by name of the site.

        One forward pass a batch, and as many backward ones as the outputs need, if there is room for all sites.
        """

        def take(sites: Sequence[Site]) -> dict[str, KfacFactors]:
            factors, passes = kfac_factors(self.model, self.task, self.batches, sites, self.seed)
            vars(self)["kfac_passes"] = passes
            return factors

        return BySite(list(self.reserve.groups(self.seen, partial(kfac.bytes_of, self.model))), take)

    @cached_property
    def kfac_passes(self) -> int:
        """Backward passes a batch that the factors take, or took."""
        with torch.inference_mode():
            return kfac.backward_passes(self.task.readout(self.model, self.batches[0].to(self.model.device)))

    @cached_property
    def magnitudes(self) -> dict[str, Floats]:
        """[C] a site: sum over sequences of (mean over positions of |h|)^2; one forward pass a batch."""
        sums: dict[str, torch.Tensor] = {}

        def see(site: Site, hidden: torch.Tensor, counted: torch.Tensor) -> None:
            total = (hidden.double().abs() * counted.unsqueeze(-1)).sum(1)
            mean = total / counted.sum(1, keepdim=True).clamp(min=1)
            sums[site.name] = sums.get(site.name, 0) + mean.square().sum(0)

        watch_inputs(self.model, self.task, self.batches, self.seen, see)
        return {path: total.cpu().numpy() for path, total in sums.items()}

    @cached_property
    def routed(self) -> dict[str, Routed]:
        """What is sent to each expert that is an arm, by the name of its own site; one forward pass a batch."""
        asked = [site for site, _ in self.sites if site.kind == "expert"]
        return sent_to_experts(self.model, self.task, self.batches, asked)

    @cached_property
    def cosines(self) -> dict[str, float]:
        """E[x . y / (|x| |y|)] of each layer that is an arm, by its name, x what it is given and y what it gives; one
        forward pass a batch."""
        return mean_cosines(self.model, self.task, self.batches, [site for site, _ in self.sites])

    @cached_property
    def example_gradients(self) -> Floats:
        """[K, N], dL_i/dm_a, L_i the loss of example i; one forward and one backward pass a batch."""
        return np.concatenate([self._gradients_on(batch) for batch in over(self.batches, "gradients")], axis=1)

    @cached_property
    def gradients(self) -> Floats:
        """[K, n], dL_b/dm_a, L_b the mean loss of batch b; made from `example_gradients`."""
        sizes = [batch.examples for batch in self.batches]
        return np.add.reduceat(self.example_gradients, np.cumsum([0, *sizes[:-1]]), axis=1) / sizes

    def weight(self, site: Site) -> Floats:
        """[D, C], the weight of a site's projection."""
        return projection_of(self.model, site).weight.detach().double().cpu().numpy()

    def row_squares(self, site: Site) -> list[Floats]:
        """Squares of the weights that make the columns of a site, summed over inputs; [rows] for each matrix or block.

        One for each projection, or each block of a fused one, that feeds the site: gate and up; query, key and value.
        """
        base, found = self.model.base_model, []
        for cut in rows_of(base, site):
            weight = part_at(base, cut.path).detach().double()
            weight = weight if cut.expert is None else weight[cut.expert]
            dim = cut.dim - (cut.expert is not None)
            if weight.ndim > 1:
                squares = weight.square().sum([other for other in range(weight.ndim) if other != dim])
                found.append(squares[torch.as_tensor(cut.index)].cpu().numpy())
        return found

    def sums(self, values: Callable[[Site], Floats]) -> Floats:
        """[K], for each arm the sum of `values(site)` over what is its own; see `sums_at`.

        An expert is all its neurons: its sum is that over a site of its own.
        """
        totals = np.empty(len(self.arms))
        for site, rows in self.sites:
            if site.kind == "expert":
                totals[rows] = [values(part).sum() for part in members(site, self.all_sites)]
            else:
                totals[rows] = self.sums_at(site, rows, values(site))
        return totals

    def by_expert(self, values: Mapping[str, float]) -> Floats:
        """[K], the value of each expert, by the name of its own site, where all arms are experts."""
        scores = np.empty(len(self.arms))
        for site, rows in self.sites:
            scores[rows] = [values[part.name] for part in members(site, self.all_sites)]
        return scores

    def sums_at(self, site: Site, rows: Ints, values: Floats) -> Floats:
        """Sums over the arms of one site.

        Args:
            rows: Arms of the site, in the order of their columns.
            values: One for each column of the output projection, or each output row of a projection that feeds it.

        Returns:
            One sum for each of `rows`.
        """
        # An arm starts at the same share of the values as of the units: rows of keys and values are fewer per unit.
        return np.add.reduceat(values, self.arms.start[rows] * len(values) // site.units)

    def _gradients_on(self, batch: Batch) -> Floats:
        inputs = batch.to(self.model.device)
        return estimate(self.model, self.arms, self.task, inputs, "loss")[0].cpu().numpy()
