"""What one forward pass says: the logits that count and their targets, and what follows from them.

Everything that a search, a compensation or a report compares between two models (losses, hits, the divergence from the
dense model) comes from here.

Symbols: B examples in a batch; P positions of an example whose logits may count, n of which do; C classes or
vocabulary; A arms. What is said of examples, losses above all, is one number an example; predictions are those of all
n positions.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from hf_mabprune.tasks.divergence import kl_divergence, probabilities_of
from hf_mabprune.tasks.scores import Scores

NO_TARGET = -100
NO_CLASS = -1
CHUNK = 2**22  # logits that are widened to double precision at a time, 32 MiB
FEW_CLASSES = 8  # that get one coordinate each


@dataclass(frozen=True)
class Readout:
    """What a task reads off one forward pass of a model whose outputs are distributions over classes.

    A task whose outputs are something else has a subclass of its own, which says what its losses, its predictions and
    the distance between two outputs are.

    Attributes:
        outputs: What the model gave there. Logits, [B, P, C], any floating dtype (P = 1 for a classifier); [A, B, P,
            C], for A arms, is for `divergence` alone.
        targets: Right class of each position, [B, P]; -100 where there is none.
    """

    outputs: torch.Tensor
    targets: torch.Tensor

    def counted(self) -> torch.Tensor:
        """Tells which positions count, [B, P] bool."""
        return self.targets != NO_TARGET

    def positions(self) -> torch.Tensor:
        """Counts the positions of each example that count, [B] int64."""
        return self.counted().sum(1)

    def losses(self) -> torch.Tensor:
        """Measures the mean cross-entropy in nats over the counted positions, [B] float64; 0 where none counts.

        Float32 on MPS. Differentiable. The logits are widened a few examples at a time, so the extra memory does not
        grow with the batch, in the backward pass neither: there the chunks are computed again.
        """
        examples = max(1, CHUNK // (self.outputs.shape[1] * self.outputs.shape[2]))
        chunks = list(zip(self.outputs.split(examples), self.targets.split(examples), strict=True))
        if torch.is_grad_enabled() and self.outputs.requires_grad:
            sums = [_recomputed(_summed, *chunk) for chunk in chunks]
        else:
            sums = [_summed(*chunk) for chunk in chunks]
        return torch.cat(sums) / self.positions().clamp(min=1)

    def correct(self) -> torch.Tensor:
        """Gives the fraction of the counted positions whose largest logit is the right one, [B] float64.

        Float32 on MPS. NaN where a logit of a counted position is: such a model is not right by luck.
        """
        largest = _largest(self.outputs)
        hits = (largest == self.targets).sum(1)
        correct = hits.to(wide_dtype(self.outputs)) / self.positions().clamp(min=1)
        return correct.masked_fill(((largest == NO_CLASS) & self.counted()).any(1), torch.nan)

    def predictions(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Gives the class of the largest logit at every counted position, and the right class there, [sum of n] each.

        Those of an example stand together, in the order of its positions. The class is -1 where a logit is NaN.
        """
        counted = self.counted()
        return _largest(self.outputs)[counted], self.targets[counted]

    def answers(self) -> torch.Tensor:
        """Counts the predictions of each example, [B] int64: one a counted position."""
        return self.positions()

    def scores(self, with_predictions: bool = True) -> Scores:
        """Gives what metrics need of these examples, on the CPU.

        Args:
            with_predictions: Whether predictions and right answers are kept; a metric of losses needs none.
        """
        none = self.targets.new_empty(0)
        predicted, reference = self.predictions() if with_predictions else (none, none)
        answers = self.answers() * int(with_predictions)
        columns = (self.losses(), self.positions(), predicted, reference, self.correct(), answers)
        return Scores(*(column.detach().cpu().numpy() for column in columns))

    def distribution(self) -> torch.Tensor:
        """Gives the distributions of the outputs, which `divergence` measures from: probabilities, [B, P, C].

        Float64 for up to 1,024 classes, else float32.
        """
        return probabilities_of(self.outputs)

    def summary(self) -> torch.Tensor | None:
        """Gives what many divergences from this one are measured from in less time; None where nothing is saved."""
        return None

    def divergence(self, dense: "Readout", distribution: torch.Tensor | None = None) -> torch.Tensor:
        """Measures the KL divergence from the dense model's outputs, in nats, mean over the counted positions.

        Differentiable.

        Args:
            dense: Readout of the dense model on the batch.
            distribution: `dense.distribution()`, where it is at hand, or its `summary`.

        Returns:
            [B], or [A, B] for several arms. Float64 for up to 1,024 classes, else float32.
        """
        if distribution is None and torch.is_grad_enabled() and self.outputs.requires_grad:
            examples = max(1, CHUNK // self.outputs[0].numel())
            chunks = zip(*(t.split(examples) for t in (self.outputs, dense.outputs)), strict=True)
            parts = [_recomputed(kl_divergence, z0, z) for z, z0 in chunks]
            divergences = torch.cat(parts)
        else:
            divergences = kl_divergence(dense.outputs, self.outputs, distribution)
        counted = self.counted()
        return torch.where(counted, divergences, 0).sum(-1) / counted.sum(-1).clamp(min=1)

    def softened(self, temperature: float) -> "Readout":
        """Gives the same with all logits divided by a temperature."""
        return self if temperature == 1 else replace(self, outputs=self.outputs / temperature)

    def few_outputs(self) -> bool:
        """Tells whether `coordinates` are exact, one or a few an example, rather than drawn."""
        return self.outputs.shape[-2] == 1 and self.outputs.shape[-1] <= FEW_CLASSES

    def coordinates(self, dense: "Readout", samples: int, seed: int) -> Iterator[torch.Tensor]:
        """Gives values u_i in which the divergence is half a squared distance, to second order, [B] float64 each.

        With d(y) = log q(y) - log p(y), where p and q are the softmax of the dense model's logits and of these,

            KL(p || q) ~ 1/2 E_p[(d - E_p[d])^2],    divergence = its mean over counted positions ~ 1/2 sum_i u_i^2

        since the Hessian of KL by the logits, at q = p, is the Fisher information diag(p) - p p^T, and the quadratic
        form of that is the variance under p (Amari, Natural gradient works efficiently in learning, 1998; with the
        Jacobian of the logits on both sides it is the Gauss-Newton matrix: Martens, arXiv 1412.1193).

        Why not take the divergence itself: it is least at the dense model, so its gradient there is 0 and tells
        nothing. A coordinate is 0 there but its gradient is not: to first order u_i moves by a sum over arms, and half
        its square says what they do together, pairs included. Differentiable.

        Args:
            dense: Readout of the dense model on the batch; it gets no gradients.
            samples: Label draws where the coordinates are not exact, see `few_outputs`.
            seed: Seed of the draws.
        """
        exact = self.few_outputs()
        wide = wide_dtype(self.outputs) if exact else torch.float32
        log_q, log_p = (readout.outputs.to(wide).log_softmax(-1) for readout in (self, dense))
        log_p = log_p.detach()
        if not exact:
            yield from _drawn_coordinates(log_q, log_p, self.counted(), samples, seed)
        else:
            two = log_q.shape[-1] == 2
            found = [_coordinate_of_two(log_q[:, 0], log_p[:, 0])] if two else _coordinates_of_classes(log_q, log_p)
            yield from (coordinate.where(self.counted()[:, 0], 0) for coordinate in found)


def _recomputed(function: Any, *tensors: torch.Tensor) -> torch.Tensor:
    """Runs a function whose intermediate results are computed again in the backward pass, and not kept."""
    return checkpoint(function, *tensors, use_reentrant=False, preserve_rng_state=False)


def some_targets(
    targets: torch.Tensor, most: int | torch.Tensor, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Lets some positions of each example count, drawn from those that do; the others get no target.

    Args:
        targets: [B, P], -100 where there is none.
        most: Positions of an example that count at most, a number, or [B, 1].
        generator: Of the draw, on the CPU; None draws with torch's own.
    """
    turns = torch.rand(targets.shape, generator=generator).to(targets.device)
    turns[targets == NO_TARGET] = 2.0  # behind all that count
    return targets.masked_fill(turns.argsort(-1).argsort(-1) >= most, NO_TARGET)


def _largest(logits: torch.Tensor) -> torch.Tensor:
    """Gives the class of the largest logit, [..., C] -> [...]; -1 where there is none, since one is NaN."""
    largest = logits.argmax(-1)  # where there is a NaN, of that
    return largest.masked_fill(logits.gather(-1, largest.unsqueeze(-1)).squeeze(-1).isnan(), NO_CLASS)


def _coordinate_of_two(log_q: torch.Tensor, log_p: torch.Tensor) -> torch.Tensor:
    """Gives the one coordinate of two classes, [B], from log probabilities [B, 2].

    A variance over two values is p_0 p_1 (d(1) - d(0))^2, and d(1) - d(0) is the change of the log odds:
    u = sqrt(p_0 p_1) (log q_1 / q_0 - log p_1 / p_0).
    """
    change_of_odds = (log_q[:, 1] - log_q[:, 0]) - (log_p[:, 1] - log_p[:, 0])
    return (log_p.sum(-1) / 2).exp() * change_of_odds  # sqrt(p_0 p_1) from logarithms, which do not underflow


def _coordinates_of_classes(log_q: torch.Tensor, log_p: torch.Tensor) -> Iterator[torch.Tensor]:
    """Gives a coordinate for each class y, u_y = sqrt(p_y) (d(y) - E_p[d]), [B], from log probabilities [B, 1, C].

    Their squares sum to sum_y p_y (d(y) - E_p[d])^2, the variance.
    """
    p = log_p.exp()
    change = log_q - log_p
    mean = (p * change).sum(-1)
    for label in range(log_q.shape[-1]):
        yield p[:, 0, label].sqrt() * (change[:, 0, label] - mean[:, 0])


def _drawn_coordinates(
    log_q: torch.Tensor, log_p: torch.Tensor, counted: torch.Tensor, samples: int, seed: int
) -> Iterator[torch.Tensor]:
    """Gives a coordinate for each draw of labels, [B], from log probabilities [B, P, C]; exact in the mean over draws.

    At every position t a label y_t is drawn from p, by itself: the expectation of (d(y_t) - E_p[d])^2 is the variance.
    Draws of different positions are independent with mean 0, so products between positions vanish in expectation, and
    one sum serves all n counted positions of an example:

        u = sum_t (d(y_t) - E_p[d]) / sqrt(samples * n),    E[sum over draws of u^2] = 1/n sum_t variance_t

    This is the Fisher information by labels of the model's own (Martens & Grosse, arXiv 1503.05671), at one
    backward pass a draw instead of one a class.
    """
    p = log_p.exp()
    change = log_q - log_p
    mean = (p * change).sum(-1)  # [B, P]
    generator = torch.Generator(device=log_q.device).manual_seed(seed)
    for _ in range(samples):
        # Broken outputs are drawn from as if they were not: what they give is no number all the same.
        labels = torch.multinomial(p.nan_to_num(1.0).flatten(0, 1), 1, generator=generator).view_as(counted)
        centred = change.gather(-1, labels.unsqueeze(-1)).squeeze(-1) - mean
        total = torch.where(counted, centred, 0).sum(1, dtype=torch.float64)
        yield total / (samples * counted.sum(1).clamp(min=1)).sqrt()


def wide_dtype(tensor: torch.Tensor) -> torch.dtype:
    """Gives the widest floating dtype of the tensor's device: MPS has no double precision."""
    return torch.float32 if tensor.device.type == "mps" else torch.float64


def _summed(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Sums the cross-entropy over the counted positions, [b, P, C], [b, P] -> [b], for b of the examples."""
    flat = logits.to(wide_dtype(logits)).flatten(0, 1)
    losses = cross_entropy(flat, targets.flatten(), reduction="none", ignore_index=NO_TARGET)
    return losses.view(targets.shape).sum(1)
