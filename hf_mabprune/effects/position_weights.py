"""How much the outputs depend on what a projection gives at each position: weights of the data that refits see.

Least squares makes all positions alike; the divergence does not. A change dy_t of a projection's output at position t
moves the coordinates u of the outputs (`Readout.coordinates`) by g_t' dy_t, g_t = du/dy_t, and the divergence is half
the square of that. With dy_t = dW h_t, and g taken to point anywhere, KL ~ sum_t |g_t|^2 |dW h_t|^2: so errors are
weighted by |g_t|^2.

Symbols: B examples, T positions; g_t [D].
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel

from hf_mabprune.architectures import Site
from hf_mabprune.effects.gradients import frozen, slopes_of
from hf_mabprune.effects.kfac import coordinates_of, watched
from hf_mabprune.progress import over
from hf_mabprune.tasks.base import Task
from hf_mabprune.tasks.batch import Batch


@dataclass(frozen=True)
class PositionWeights:
    """Weights of the positions of one batch.

    Attributes:
        read: Name of a site -> [B, T].
        even: Weight of every position at sites that are not there.
    """

    read: Mapping[str, torch.Tensor] = field(default_factory=dict)
    even: float = 1.0

    def mixed(self, share: float, even: float) -> "PositionWeights":
        """Gives share times these plus `even`."""
        return PositionWeights({name: share * own + even for name, own in self.read.items()}, even)

    def at(self, site: Site, batch: Batch) -> torch.Tensor | float:
        """Gives those of the positions that count at a site, [N, 1]; one number where all are alike."""
        if site.name not in self.read:
            return self.even
        own = self.read[site.name]
        return own[batch.to(own.device).counted(site.stack.flag, own.unsqueeze(-1))].unsqueeze(1)


def position_weights(
    model: PreTrainedModel,
    task: Task,
    batches: Sequence[Batch],
    sites: Sequence[Site],
    seed: int = 0,
) -> tuple[list[PositionWeights], int]:
    """Takes |g|^2 at every site, over its mean; one forward and a few backwards a batch.

    Where nothing depends on a site, all positions are alike; where gradients are not finite, it has no weights.

    Args:
        model: Dense model, in evaluation mode.
        task: Reads its outputs.
        batches: Batches that refits are made from.
        sites: Where weights are wanted.
        seed: Seed of the label draws, of which there is one a batch where outputs are many.

    Returns:
        The weights of each batch, 1 in the mean over all, and the backward passes that a batch took.
    """
    found: list[dict[str, torch.Tensor]] = []
    totals = {site.name: torch.zeros(2, dtype=torch.float64) for site in sites}
    passes = 0
    for number, batch in enumerate(over(batches, "weights of positions")):
        own, passes = _of_batch(model, task, batch.to(model.device), sites, seed + number, totals)
        found.append(own)
    means = {name: float(total[0] / total[1].clamp(min=1)) for name, total in totals.items()}
    scaled = (
        {name: square / means[name] if means[name] > 0 else torch.ones_like(square) for name, square in own.items()}
        for own in found
    )
    return [PositionWeights(own) for own in scaled], passes


def _of_batch(
    model: PreTrainedModel,
    task: Task,
    inputs: Batch,
    sites: Sequence[Site],
    seed: int,
    totals: Mapping[str, torch.Tensor],
) -> tuple[dict[str, torch.Tensor], int]:
    """Gives |g|^2 of a batch, [B, T] by site, and its backward passes, and adds to the totals of each site: sum and
    count over positions. What the pass has kept is gone before that of the next batch begins."""
    with frozen(model), torch.enable_grad(), watched(model, sites) as seen:
        readout = task.readout(model, inputs)
        squares = [torch.zeros(output.shape[:-1], device=output.device) for output in seen.outputs]
        passes = 0
        for coordinate in coordinates_of(readout, seed, samples=1):
            for total, slopes in zip(squares, slopes_of(coordinate, seen.outputs), strict=True):
                total += slopes.float().square().sum(-1)
            passes += 1
    own: dict[str, torch.Tensor] = {}
    for site in sites:
        runs = list(seen.runs(site))
        if not runs:
            continue  # a module that did not run
        hidden = runs[0][0]
        square = torch.stack([squares[run] for _, run in runs]).sum(0).view(hidden.shape[:-1])
        counted = inputs.counted(site.stack.flag, hidden)
        if bool(square[counted].isfinite().all()):
            own[site.name] = square
            totals[site.name] += torch.tensor([float(square[counted].double().sum()), int(counted.sum())])
    return own, passes
