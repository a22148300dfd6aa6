"""The contract of a reward: from what a pull measured to one number an example; higher = safer to remove.

Each reward compares the model without S + a to the model without S, on the same examples, from three observations: of
the dense model, in the context and pulled. KL(S) and L(S) are divergence from the dense model and loss without S.
Symbols: A arms, B examples; S the context (arms already removed), a the arm.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch

from hf_mabprune.registry import Registry

REWARDS: Registry[type["Reward"]] = Registry("reward", "hf_mabprune.effects.rewards")
QUANTITIES = ("loss", "kl", "correct")


@dataclass(frozen=True)
class Observation:
    """What one forward pass says about each example. Quantities that nobody asked for are empty, [0].

    Attributes:
        loss: [B] or [A, B] for A arms, float64, mean loss over the example's positions.
        kl: [B] or [A, B], float64, mean KL divergence of this model's output from the dense model's.
        correct: [B] or [A, B], float64, fraction of the example's positions predicted right; NaN for outputs that are
            neither right nor wrong.
    """

    loss: torch.Tensor
    kl: torch.Tensor
    correct: torch.Tensor


class Reward(ABC):
    """A pure function of three observations, which says what it reads of them.

    Attributes:
        needs: Quantities that it reads: over a large vocabulary, every one costs about as much as a layer.
    """

    needs: ClassVar[tuple[str, ...]]

    @abstractmethod
    def __call__(self, dense: Observation, context: Observation, pulled: Observation) -> torch.Tensor:
        """Gives how safe the removal looks on each example, [B] or [A, B] float64; 0 where nothing changes.

        Args:
            dense: Observation of the dense model.
            context: Observation without S, [B] each.
            pulled: Observation without S + a, [B] or [A, B] each.
        """


def check_reward(name: str, predicts_classes: bool = True, has_loss: bool = True) -> None:
    """Refuses a reward that is unknown, or that the outputs of a task have no meaning for.

    Args:
        name: Name of the reward.
        predicts_classes: Whether the task predicts classes; else numbers.
        has_loss: Whether the task has a loss beside the divergence from the dense model.

    Raises:
        ValueError: If there is no such reward, or it compares classes and the task predicts numbers, or reads a loss
            that the task has not.
    """
    given = {"correct": predicts_classes, "loss": has_loss}
    missing = [need for need in REWARDS.get(name).needs if not given.get(need, True)]
    if missing:
        fit = [other for other in REWARDS.names() if all(given.get(need, True) for need in REWARDS.get(other).needs)]
        why = (
            "needs classes, this task predicts numbers"
            if missing == ["correct"]
            else "needs a loss, this task has none"
        )
        raise ValueError(f"search.reward {name} {why}; use one of {', '.join(fit)}")
