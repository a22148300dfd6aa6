"""KfacFactors of the KL divergence at the output projections: what a change of their weights costs at the outputs.

A projection y = W h + b whose weights change by dW moves the coordinates u of the outputs (`Readout.coordinates`, in
which the divergence is half a squared distance) by the sum over positions of g' dW h, g = du/dy. Taken as independent
between positions, and g of h given the position's weight, the divergence is

    KL ~ 1/2 tr(G dW A dW'),   G = 1/N sum over positions of g g',   A = E_w[h h'],

E_w the mean over positions weighted by |g|^2: a position that the outputs do not read counts nothing. These are the
Kronecker factors of Martens & Grosse 2015 (K-FAC, arXiv 1503.05671), of the Gauss-Newton matrix and not of the
empirical Fisher information: no labels are read.
Symbols: N examples; B, T of a batch; D outputs and C inputs of a projection.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_mabprune.architectures import Site
from hf_mabprune.effects.activations import Moments
from hf_mabprune.effects.gradients import frozen
from hf_mabprune.tasks.base import Batch, Task
from hf_mabprune.tasks.readout import Readout

READ = 0.9  # share of the weights that follows |g|^2; the rest is even, so that no input goes unseen
SAMPLES = 2  # label draws where outputs are many


@dataclass(frozen=True)
class KfacFactors:
    """Kronecker factors at one projection.

    Attributes:
        inputs: Mean and second moment of h over positions, weighted: A is `inputs.second`.
        outputs: [D, D] float64, G.
    """

    inputs: Moments
    outputs: torch.Tensor

    def root(self) -> torch.Tensor:
        """[D, D], the symmetric root of G: KL ~ 1/2 E_w|root dW h|^2."""
        values, vectors = torch.linalg.eigh(self.outputs)
        return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def kfac_factors(
    model: PreTrainedModel, task: Task, batches: Iterable[Batch], sites: Sequence[Site], seed: int = 0
) -> tuple[dict[str, KfacFactors], int]:
    """The factors of every site, by the path of its output projection; one forward and a few backwards a batch.

    Masks that are on are seen. Every process of a launch computes the same, so that nothing depends on how many there
    are. The model is neither changed nor given gradients. Memory: (C * C + D * D) float64 a site.

    Args:
        model: In evaluation mode.
        seed: Of the label draws.

    Returns:
        The factors, and the backward passes that a batch took. Batches whose outputs are not finite are left out.

    Raises:
        ValueError: If no batch has finite outputs.
    """
    sums: dict[str, list[torch.Tensor]] = {}
    counts = dict.fromkeys((site.output for site in sites), 0)
    examples, passes = 0, 0
    for number, batch in enumerate(batches):
        inputs = {name: tensor.to(model.device) for name, tensor in batch.items()}
        counted = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"]))
        counted = counted.reshape(-1, counted.shape[-1]).bool()
        with frozen(model), torch.enable_grad(), _watched(model, sites) as seen:
            readout = task.readout(model, inputs)
            outputs = [output for _, output in seen.values()]
            gradients = [_gradients(moved, outputs) for moved in _coordinates(readout, seed + number)]
        passes = len(gradients)
        if not all(bool(part.isfinite().all()) for part in (readout.logits, *(g for each in gradients for g in each))):
            continue  # a broken batch tells nothing
        examples += len(inputs["input_ids"])
        for place, (path, (hidden, _)) in enumerate(seen.items()):
            rows = hidden.detach()[counted].float()
            slopes = torch.stack([each[place][counted] for each in gradients]).float()  # [coordinates, n, D]
            weights = slopes.square().sum((0, 2)).double()
            weighted = rows.double() * weights.unsqueeze(1)
            flat = slopes.flatten(0, 1)
            parts = [
                weights.sum(), weighted.sum(0), weighted.float().T @ rows, rows.sum(0), rows.T @ rows, flat.T @ flat
            ]  # fmt: skip
            counts[path] += len(rows)
            parts = [part.double() for part in parts]
            sums[path] = [a + b for a, b in zip(sums[path], parts, strict=True)] if path in sums else parts
    if not sums:
        raise ValueError("no calibration batch has finite outputs: look for broken weights, or use dtype float32")
    return {path: _factors(found, counts[path], examples) for path, found in sums.items()}, passes


@torch.no_grad()
def backward_passes(readout: Readout) -> int:
    """Backward passes a batch that `kfac_factors` takes where outputs are such as these: one a coordinate."""
    return sum(1 for _ in _coordinates(readout, 0))


def _factors(sums: Sequence[torch.Tensor], count: int, examples: int) -> KfacFactors:
    """From sums over positions of |g|^2, |g|^2 h, |g|^2 h h', h, h h' and g g'."""
    total, read, read_second, plain, plain_second, outputs = sums
    share = READ if total > 0 else 0.0
    total = total.clamp(min=torch.finfo(total.dtype).tiny)
    mean = share * read / total + (1 - share) * plain / count
    second = share * read_second / total + (1 - share) * plain_second / count
    return KfacFactors(Moments(count, mean, second), outputs / examples)


@contextmanager
def _watched(
    model: PreTrainedModel, sites: Sequence[Site]
) -> Iterator[dict[str, tuple[torch.Tensor, torch.Tensor]]]:
    """Input [B, T, C] and output [B, T, D] of each site's projection, as they appear; outputs take gradients."""
    seen: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    with ExitStack() as hooks:
        for site in sites:

            def hook(_: nn.Module, arguments: Any, output: torch.Tensor, path: str = site.output) -> torch.Tensor:
                output = output if output.requires_grad else output.detach().requires_grad_()
                seen[path] = arguments[0], output
                return output

            hooks.callback(model.base_model.get_submodule(site.output).register_forward_hook(hook).remove)
        yield seen


def _coordinates(readout: Readout, seed: int) -> Iterator[torch.Tensor]:
    """u, zero where the model is now."""
    return readout.coordinates(replace(readout, logits=readout.logits.detach()), SAMPLES, seed)


def _gradients(values: torch.Tensor, outputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Of each example's value with respect to its positions, one tensor an output."""
    return list(torch.autograd.grad(values.sum(), outputs, retain_graph=True))
