"""The methods of the study and how cells are made, with the pairs of methods that are tested, named before any run.

Policies are the six of arXiv 2606.07615. The abstract says how an arm is pulled, and nothing of clipping, batches,
budget, fractions or stopping: those are choices of this project, `Protocol`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from research.studies.paper.rows import DENSE, KL, LOSS, NO_REWARD

POLICIES = ("epsilon_greedy", "softmax", "ucb1", "thompson", "hedge", "exp3")
CONTROLS = ("race", "sequential_halving", "uniform", "sweep")  # other ways to spend the same pulls
CRITERIA = ("random", "magnitude", "activation_variation", "kfac_obs")
SAME_SPLIT, CUMULATIVE = VARIANTS = ("same_split", "cumulative")

# Of policies with the paper's reward: what the abstract claims of them, and what a fair reader asks besides.
PLANNED = [
    *((name, other) for name in ("ucb1", "thompson") for other in (DENSE, "magnitude", "activation_variation")),
    ("ucb1", "random"),
    ("ucb1", "uniform"),
    ("ucb1", "race"),
]


@dataclass(frozen=True)
class Protocol:
    """Says how cells of tables are made; the defaults are the study's.

    Attributes:
        splits: Splits of each table.
        fractions: Fractions of the hidden neurons that go, all from one search.
        pulls_per_arm: Budget of a search, times the number of neurons.
        rounds: Removals in steps, each in the context of what is gone.
        batch_size: Rows of the mini-batch of a pull; a quarter of the training rows, where that is less.
        calibration_rows: Training rows at most that rewards are measured on.
        tuning_steps: Steps of the training after a removal.
        variant_splits: Splits on which the mistakes of `VARIANTS` are made.
        tuning_rows: Training rows at most on which rivals are tuned; they are trained on all.
        methods: Names of methods and rivals that are compared; empty takes all.
    """

    splits: int = 10
    fractions: tuple[float, ...] = (0.1, 0.25, 0.5, 0.75)
    pulls_per_arm: float = 2.0
    rounds: int = 8
    batch_size: int = 32
    calibration_rows: int = 512
    tuning_steps: int = 40
    variant_splits: int = 3
    tuning_rows: int = 500
    methods: tuple[str, ...] = ()

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> "Protocol":
        """Reads a protocol from what JSON has made of one."""
        given = {name: tuple(value) if isinstance(value, list) else value for name, value in stored.items()}
        return cls(**dict[str, Any](given))

    def takes(self, method: str) -> bool:
        """Tells whether a method is one of those that are compared."""
        return not self.methods or method in self.methods


@dataclass(frozen=True)
class Method:
    """A way to choose what goes.

    Attributes:
        name: Name of the policy or criterion.
        reward: What pulls measure; empty without pulls.
        search: Section `search` of the settings of a run.
        variant: One of `VARIANTS`, or empty.
    """

    name: str
    reward: str = NO_REWARD
    search: dict[str, Any] = field(default_factory=dict)
    variant: str = ""


def pruning_methods(protocol: Protocol, draw: int) -> Iterator[Method]:
    """Lists the methods that cut a network, and on the first splits the mistakes.

    Args:
        protocol: How cells are made.
        draw: Number of the split.
    """
    return (method for method in _all_methods(protocol, draw) if protocol.takes(method.name))


def _all_methods(protocol: Protocol, draw: int) -> Iterator[Method]:
    for reward in (LOSS, KL):
        for name in (*POLICIES, *CONTROLS):
            yield Method(name, reward, searching(protocol, name, reward))
    for name in CRITERIA:
        yield Method(name, search={"criterion": name})
    if draw < protocol.variant_splits:
        for name in POLICIES:
            yield Method(name, LOSS, searching(protocol, name, LOSS), SAME_SPLIT)
            yield Method(name, LOSS, searching(protocol, name, LOSS, rank_by=CUMULATIVE), CUMULATIVE)


def searching(protocol: Protocol, name: str, reward: str, **options: Any) -> dict[str, Any]:
    """Gives the settings of a search: of the six policies, one arm is pulled before the estimates are updated.

    Args:
        protocol: How cells are made.
        name: Name of the policy.
        reward: What pulls measure.
        options: Options of the policy.
    """
    return {
        "policy": {"name": name, **options},
        "rule": "single",
        "reward": reward,
        "rounds": protocol.rounds,
        "pulls_per_arm": protocol.pulls_per_arm,
        "arms_per_step": 1 if name in POLICIES else None,
    }
