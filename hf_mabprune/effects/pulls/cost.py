"""What was paid: the one measure that searches, criteria, refits and training are compared by."""

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Cost:
    """Adds up what something has paid, over all processes; what several of them do alike is counted once.

    Attributes:
        pulls: Measurements of an arm, or of a whole set of arms.
        forward_tokens: Positions of input that went through the model, padding included; a pass through a part of the
            layers counts as that part.
        backward_tokens: Positions that the model was differentiated on.
        seconds: Wall-clock time.
    """

    pulls: int = 0
    forward_tokens: float = 0.0
    backward_tokens: float = 0.0
    seconds: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(*(getattr(self, part.name) + getattr(other, part.name) for part in fields(self)))

    def __sub__(self, other: "Cost") -> "Cost":
        return Cost(*(getattr(self, part.name) - getattr(other, part.name) for part in fields(self)))
