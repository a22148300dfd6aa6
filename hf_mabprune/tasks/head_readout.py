"""What one forward pass of a language model of a large vocabulary says, whose logits are never there all at once.

Symbols: A arms; B examples in a batch; P positions of an example whose logits may count, n of all do; D hidden size.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch

from hf_mabprune.tasks import vocabulary, vocabulary_gradients
from hf_mabprune.tasks.readout import NO_CLASS, Readout

SMALL = 1e-3  # nats: divergences of at most so much are not measured from a summary, which has an error of 1e-6


@dataclass(frozen=True)
class HeadReadout(Readout):
    """What a language model says where its vocabulary is large: hidden states, and the head that makes them logits.

    Logits are made a few at a time (`vocabulary.py`), in float32 whatever the precision of the model.

    Attributes:
        outputs: Hidden states that the head is given, [B, P, D]; [A, B, P, D] for `divergence`.
        head: The head.
    """

    head: vocabulary.Head = field(repr=False)
    _known: dict[str, torch.Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    def losses(self) -> torch.Tensor:
        """Measures the mean cross-entropy in nats over the counted positions, [B] float64; 0 where none counts."""
        hidden, targets = self._hidden(), self.targets[self.counted()]
        if torch.is_grad_enabled() and self._trained():
            found = vocabulary_gradients.losses(self.head, hidden, targets)
        else:
            found = self._said()["normaliser"] - self.head.of(hidden.float(), targets).double()
        return self._mean(found)

    def correct(self) -> torch.Tensor:
        """See `Readout.correct`."""
        largest, targets = self._said()["largest"], self.targets[self.counted()]
        hits = (largest == targets).double().masked_fill(largest == NO_CLASS, torch.nan)
        return self._mean(hits)

    def predictions(self) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Readout.predictions`."""
        return self._said()["largest"], self.targets[self.counted()]

    def distribution(self) -> torch.Tensor:
        """Gives nothing, [0]: divergences are measured from hidden states."""
        return self.outputs.new_empty(0)

    def summary(self) -> torch.Tensor:
        """See `Readout.summary`: [n, D + 1] float64, of the counted positions."""
        return vocabulary.summary(self.head, self._hidden())

    def divergence(self, dense: Readout, distribution: torch.Tensor | None = None) -> torch.Tensor:
        """See `Readout.divergence`; float64. With a summary of the dense model one product for two, where it is large
        enough."""
        if self.outputs.ndim > dense.outputs.ndim:
            return torch.stack([replace(self, outputs=outputs).divergence(dense) for outputs in self.outputs])
        hidden, others = self._hidden(), dense.outputs[self.counted()]
        if torch.is_grad_enabled() and self._trained():
            return self._mean(vocabulary_gradients.divergences(self.head, hidden, others))
        if distribution is not None and len(distribution):
            large = vocabulary.diverged(self.head, hidden, others, distribution)
            if float(large.mean()) > SMALL:
                return self._mean(large)
        found = vocabulary.compared(self.head, hidden, others)
        self._known.update(normaliser=found.normaliser, largest=found.largest)
        return self._mean(found.divergence)

    def softened(self, temperature: float) -> "Readout":
        """See `Readout.softened`; the head is linear, so hidden states and bias are divided."""
        if temperature == 1:
            return self
        bias = None if self.head.bias is None else self.head.bias / temperature
        return replace(self, outputs=self.outputs / temperature, head=replace(self.head, bias=bias))

    def few_outputs(self) -> bool:
        """Says no: labels are drawn."""
        return False

    def coordinates(self, dense: Readout, samples: int, seed: int) -> Iterator[torch.Tensor]:
        """See `Readout.coordinates`. The head is linear, so that with row W_y of token y

        d(y) - E_p[d] = (W_y - E_p[W]) (h - h0).
        """
        counted = self.counted()
        others = dense.outputs[counted].detach().float()
        change = self._hidden().float() - others
        expected = vocabulary.expected(self.head, others)
        generator = torch.Generator(device=others.device).manual_seed(seed)
        for _ in range(samples):
            tokens = vocabulary.draw(self.head, others, expected.masses, generator)
            rows = self.head.weight.detach()[tokens].float() - expected.row
            yield self._mean(torch.linalg.vecdot(rows, change).double()) * (self.positions() / samples).sqrt()

    def _hidden(self) -> torch.Tensor:
        """[n, D], hidden states of all counted positions."""
        return self.outputs[self.counted()]

    def _trained(self) -> bool:
        return self.outputs.requires_grad or self.head.weight.requires_grad

    def _said(self) -> dict[str, torch.Tensor]:
        """What the logits say at each counted position, read once: see `vocabulary.Said`."""
        if not self._known:
            found = vocabulary.said(self.head, self._hidden())
            self._known.update(normaliser=found.normaliser, largest=found.largest)
        return self._known

    def _mean(self, values: torch.Tensor) -> torch.Tensor:
        """Means over the counted positions of each example, [n] -> [B]; 0 where none counts."""
        counted = self.counted()
        owner = torch.arange(len(counted), device=counted.device).repeat_interleave(counted.sum(1))
        sums = torch.zeros(len(counted), dtype=values.dtype, device=values.device).index_add(0, owner, values)
        return sums / self.positions().clamp(min=1)
