"""How much the outputs depend on what a projection gives at each position: weights of the data that refits see.

Least squares makes all positions alike; the divergence does not. A change dy_t of a projection's output at position t
moves the coordinates u of the outputs (`Readout.coordinates`) by g_t' dy_t, g_t = du/dy_t, and the divergence is half
the square of that. With dy_t = dW h_t, and g taken to point anywhere, KL ~ sum_t |g_t|^2 |dW h_t|^2: so errors are
weighted by |g_t|^2. A part of the weight is even, since g is drawn, and since what is read nowhere would else be free.

Symbols: B examples, T positions; g_t [D].
"""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from hf_mabprune.architectures import Site
from hf_mabprune.effects.gradients import frozen, slopes_of
from hf_mabprune.effects.kfac import coordinates_of, watched
from hf_mabprune.progress import over
from hf_mabprune.tasks.base import Task
from hf_mabprune.tasks.batch import Batch

Weights = list[dict[str, torch.Tensor]]  # of each batch: name of a site -> [B, T], 1 in the mean


def position_weights(
    model: PreTrainedModel,
    task: Task,
    batches: Sequence[Batch],
    sites: Sequence[Site],
    share: float,
    seed: int = 0,
) -> tuple[Weights, int]:
    """Takes |g|^2 at every site, mixed with what is even; one forward and a few backwards a batch.

    Where nothing depends on a site, or gradients are not finite, all positions are alike.

    Args:
        model: Dense model, in evaluation mode.
        task: Reads its outputs.
        batches: Batches that refits are made from.
        sites: Where weights are wanted.
        share: Part of the weight that follows |g|^2, 0 to 1.
        seed: Seed of the label draws, of which there is one a batch where outputs are many.

    Returns:
        The weights of each batch, [B, T] float32 by name of the site, and the backward passes that a batch took.
    """
    found: Weights = []
    totals = {site.name: torch.zeros(2, dtype=torch.float64) for site in sites}
    passes = 0
    for number, batch in enumerate(over(batches, "weights of positions")):
        inputs = batch.to(model.device)
        with frozen(model), torch.enable_grad(), watched(model, sites) as seen:
            readout = task.readout(model, inputs)
            outputs = list(seen.outputs.values())
            squares = [torch.zeros(output.shape[:-1], device=output.device) for output in outputs]
            passes = 0
            for coordinate in coordinates_of(readout, seed + number, samples=1):
                for total, slopes in zip(squares, slopes_of(coordinate, outputs), strict=True):
                    total += slopes.float().square().sum(-1)
                passes += 1
        of_module = dict(zip(seen.outputs, squares, strict=True))
        own: dict[str, torch.Tensor] = {}
        for site in sites:
            if site.name not in seen.inputs:
                continue  # a module that did not run
            hidden = seen.inputs[site.name]
            square = of_module[seen.modules[site.name]].view(hidden.shape[:-1])
            counted = inputs.counted(site.stack.flag, hidden)
            if bool(square[counted].isfinite().all()):
                own[site.name] = square
                totals[site.name] += torch.tensor([float(square[counted].double().sum()), int(counted.sum())])
        found.append(own)
    return [{name: _mixed(square, totals[name], share) for name, square in own.items()} for own in found], passes


def _mixed(square: torch.Tensor, total: torch.Tensor, share: float) -> torch.Tensor:
    """share |g|^2 / its mean + 1 - share; ones where the mean is 0."""
    mean = float(total[0] / total[1].clamp(min=1))
    return share * square / mean + (1 - share) if mean > 0 else torch.ones_like(square)
