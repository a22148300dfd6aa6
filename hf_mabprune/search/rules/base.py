"""The contract of a removal rule: from what was measured of single arms to the arms that go.

Arms are measured one at a time, and go by the hundred. What single measurements do not say of sets is for a rule to
know: nothing at all (`single`), which arms stand in for one another (`interactions`), or what is left once all that
stays has been refitted (`refit`).
Symbols: K arms; n pulls.
"""

from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

from hf_mabprune.effects import gradients
from hf_mabprune.effects.interactions import Interactions
from hf_mabprune.effects.kfac import backward_passes
from hf_mabprune.effects.masking import StandIn
from hf_mabprune.effects.memory import Sizes
from hf_mabprune.effects.pulls import Pulls
from hf_mabprune.effects.pulls.cost import Cost
from hf_mabprune.registry import Registry, option
from hf_mabprune.selection.plan import Bools, Floats, Ints, Plan
from hf_mabprune.session import Session
from hf_mabprune.tasks.readout import Readout

RULES: Registry[type["Rule"]] = Registry("removal rule", "hf_mabprune.search.rules")


class Removal(NamedTuple):
    """What goes in one round.

    Attributes:
        kept: [K], arms that stay.
        removed: Arms that go, safest first.
        scores: [K], what all arms were ranked by, higher = safer to remove.
    """

    kept: Bools
    removed: Ints
    scores: Floats


class RuleMemory(NamedTuple):
    """Bytes that a rule needs, beside those of the pulls.

    Attributes:
        kept: All the time, out of the reserve.
        refits: Out of the reserve too, while it settles.
        preparing, pulling, settling: Besides, while it does that.
    """

    kept: int = 0
    refits: int = 0
    preparing: int = 0
    pulling: int = 0
    settling: int = 0


class Extent(NamedTuple):
    """What the work of a rule depends on.

    Attributes:
        batches: Number of calibration batches.
        held_out: Passes over a batch that one over what refits are judged by takes as long as.
        readout: What the dense model says on one.
        moments: Passes over a batch that take as long as the second moments of all sites on it.
        pulls: Number of pulls of the search.
        sizes: Number of sizes that are settled.
    """

    batches: int
    held_out: float
    readout: Readout
    moments: float
    pulls: int
    sizes: int


@dataclass(kw_only=True)
class Rule(ABC):
    """Decides what goes after each round of a search.

    Attributes:
        default_rounds: Rounds of a search that does not say how many.
        estimates: Whether every arm has an estimate without a pull.
        stand_ins: What comes in the place of an arm while it is pulled, by the path of its projection; None: nothing.
        cost: Of what the rule measured by itself.
        measured, planned: Sets that were measured so far, and that will be at most, where a rule measures sets.
    """

    default_rounds: ClassVar[int] = 8
    estimates: ClassVar[bool] = False

    stand_ins: Mapping[str, StandIn] | None = field(default=None, init=False, repr=False)
    cost: Cost = field(default_factory=Cost, init=False, repr=False)
    measured: int = field(default=0, init=False)
    planned: int = field(default=0, init=False)

    def default_pulls(self, session: Session) -> float:
        """Gives the pulls an arm of a search whose settings do not say how many."""
        return 1.0

    def prepare(self, session: Session) -> None:  # noqa: B027
        """Finds out, before the first pull, what the rule needs to know of the model."""

    def begin(self, pulls: Pulls, number: int) -> Floats | None:
        """Measures, at the start of a round, how arms bear on each other in its context.

        Args:
            pulls: Measures arms, in the context of the round.
            number: Number of the round, 1-based; seeds what is drawn.

        Returns:
            [K], the reward of each arm as far as it is known without a pull; None where there are no estimates.
        """
        return None

    def controls(self, arms: Ints, batches: Ints) -> Floats | None:
        """Gives the same estimate of `arms[i]` on batch `batches[i]` alone, [n], as a control variate of its pull."""
        return None

    @abstractmethod
    def choose(self, plan: Plan, rewards: Floats, kept: Bools, start: float, progress: float) -> Removal:
        """Chooses what would go if the round ended with these rewards.

        Args:
            plan: What has to go, from which arms.
            rewards: [K], of each arm alone, higher = safer to remove.
            kept: [K], arms that are still there.
            start, progress: Part of the target that is reached, and that is to be reached.
        """

    def settle(
        self, plans: Sequence[Plan], rewards: Floats, kept: Bools, start: float, progress: float
    ) -> Generator[None, None, Removal]:
        """Removes arms at the end of a round; yields after every set that it measures on the way.

        Args:
            plans: Of all sizes, least removed first; the last one is the search's.
            rewards, kept, start, progress: As those of `choose`.
        """
        return self.choose(plans[-1], rewards, kept, start, progress)
        yield  # a generator, as those of rules that measure

    def memory(self, sizes: Sizes) -> RuleMemory:
        """Estimates the bytes that the rule needs."""
        return RuleMemory()

    def passes(self, extent: Extent) -> float:
        """Estimates the passes over one batch, or as much work, that the rule makes by itself; no weights get
        gradients, so that a backward pass is one."""
        return 0.0

    def held_out_kl(self) -> float | None:
        """Gives the KL divergence of the refitted model on held-out calibration data, where the rule measured it."""
        return None

    def summary(self) -> str:
        """Says in half a sentence what the rule itself did; empty where that is nothing."""
        return ""


@dataclass(kw_only=True)
class EstimatingRule(Rule):
    """What rules share that know the effects of all arms at once, from gradients, beside what pulls say of each.

    Args:
        label_draws: Backward passes a batch, where outputs have more than 8 classes or several positions.
    """

    estimates: ClassVar[bool] = True

    label_draws: int = option(4, "backward passes a batch, where outputs are more than 8 classes")
    _interactions: Interactions | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.label_draws < 1:
            raise ValueError(f"label_draws must be at least 1, got {self.label_draws}")

    @property
    def interactions(self) -> Interactions:
        """Effects of all arms in the context of the round."""
        assert self._interactions is not None, "a round begins before anything is asked of it"
        return self._interactions

    def begin(self, pulls: Pulls, number: int) -> Floats | None:
        """See `Rule.begin`."""
        self._interactions = Interactions(*pulls.effects(self.label_draws, number))
        return self.interactions.rewards()

    def memory(self, sizes: Sizes) -> RuleMemory:
        """See `Rule.memory`."""
        return RuleMemory(pulling=gradients.memory(sizes))

    def passes(self, extent: Extent) -> float:
        """See `Rule.passes`: one forward and up to `label_draws` backward passes a batch."""
        return extent.batches * (1 + backward_passes(extent.readout, self.label_draws))

    def controls(self, arms: Ints, batches: Ints) -> Floats | None:
        """See `Rule.controls`."""
        return self.interactions.controls(arms, batches)
