"""Sets of arms: what removing one does to the worth of the others. Pure: arrays in, arrays out.

Per example, the KL divergence from the dense model is half a squared distance of the outputs in some coordinates,
KL ~ 1/2 |u|^2 (`Readout.coordinates`), and to first order the changes of the coordinates with the arms add up: without
S and A they are at u_S + sum_{a in A} E_a, E_a = -du/dm_a, m_a the gate of the arm. Written out, over N examples,

    KL(S + A) - KL(S) ~ sum_{a in A} c_a + 1/N sum_{a < b in A} E_a . E_b,   c_a = 1/N u_S . E_a + 1/(2N) |E_a|^2,

and u_S . E_a / N = -dKL/dm_a, the slope. Pulls measure the c_a exactly, one arm at a time; the products E_a . E_b know
which arms stand in for each other (> 0: with one gone the other costs more), and which cancel (< 0). Kwon et al. 2022
(arXiv 2204.09656, section 4.2) rearrange a mask by such products of gradients of the loss, within a layer; here they
are of the KL divergence from the dense model, over all layers, and steer every removal.
Symbols: K arms; D coordinates of the outputs of N examples; n pulls; S the arms already removed, A those that go now.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_mabprune.selection.plan import Bools, Floats, Ints, Plan

STEPS = 128  # in which the arms of a round go, each with the interactions of those before it
# What an arm costs beyond c_a, in parts of its own |E_a|^2 / N. A greedy choice looks for products below zero, and
# from few examples finds some that cancel on these alone; as a ridge does in a regression, this has it rely on them
# only where they outweigh a part of the arm's own square. 0 and 1 were no better (LOG.md).
RIDGE = 0.25


@dataclass(frozen=True)
class Interactions:
    """Effects of all arms in one context.

    Attributes:
        effects: [K, D], E; float32, but for huge ones.
        slopes: [K, batches], dKL/dm_a, mean over the examples of each batch.
        batch: [D], number of the batch that each coordinate belongs to.
        examples: [batches], number of examples; N is the sum.
    """

    effects: NDArray[np.floating[Any]]
    slopes: Floats
    batch: Ints
    examples: Ints

    def rewards(self) -> Floats:
        """[K], -c_a: the reward of each arm alone, as far as second order knows it."""
        return self.slopes @ self.examples / self.examples.sum() - self._squares / 2

    def controls(self, arms: Ints, batches: Ints) -> Floats:
        """[n], the same of `arms[i]` on batch `batches[i]` alone: the control variate of that pull."""
        controls = self.slopes[arms, batches]
        for batch in np.unique(batches):
            rows = batches == batch
            effects = self.effects[np.ix_(arms[rows], self.batch == batch)]
            controls[rows] -= np.square(effects).sum(1) / max(int(self.examples[batch]), 1) / 2
        return controls

    def remove(
        self, plan: Plan, rewards: Floats, kept: Bools, start: float, progress: float, steps: int = STEPS
    ) -> tuple[Bools, Ints, Floats]:
        """Removes arms, safest first, each in the light of those that went before it.

        Args:
            plan: What has to go, from which arms.
            rewards: [K], of each arm alone, higher = safer to remove.
            kept: [K], arms that are still there.
            start, progress: Part of the target that is reached, and that is to be reached.
            steps: Removals between which rewards are brought up to date.

        Returns:
            kept, [K]; the arms removed in this call, safest first; and [K] the rewards of all arms as they were last
            seen: of the removed when they went, of the others after it.
        """
        moved = np.zeros_like(self.effects[0])  # [D], sum of E_b over the arms b that have gone
        own = rewards - RIDGE * self._squares
        now, removed = own.copy(), []
        for reached in np.linspace(start, progress, steps + 1)[1:]:
            # -c_a less the products of a with all that has gone in this call, 1/N E_a . sum_b E_b
            now = np.where(kept, own - self.effects @ moved / self.examples.sum(), now)
            kept, gone = plan.choose(now, kept, float(reached))
            moved += self.effects[gone].sum(0)
            removed.append(gone)
        return kept, np.concatenate(removed), now

    @cached_property
    def _squares(self) -> Floats:
        """[K], |E_a|^2 / N."""
        return np.einsum("kd,kd->k", self.effects, self.effects).astype(float) / self.examples.sum()
