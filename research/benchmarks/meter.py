"""What a criterion costs, where several share the statistics that they are made from.

A criterion alone costs the passes that it declares; here the seconds of what all share are charged to each as well.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hf_mabprune.criteria.statistics import BySite, CalibrationStatistics, Floats

STATISTICS = {  # property -> what is computed for it, and its passes over the data: forward, backward
    "moments": ("moments", 1, 0),
    "kfac_factors": ("kfac_factors", 1, 0),  # and as many backward passes as the outputs need
    "magnitudes": ("magnitudes", 1, 0),
    "routed": ("routed", 1, 0),
    "gradients": ("gradients", 1, 1),
    "example_gradients": ("gradients", 1, 1),
}


@dataclass
class Meter:
    """Stands in the place of statistics, and notes which of them a criterion reads, so that each is charged for all of
    its own, whoever computed them.

    Attributes:
        statistics: Statistics that are handed on.
        seconds: Statistic -> seconds of its computation.
        read: Statistics that the criterion under way has read.
        started: Moment at which it began.
        computed: Seconds of statistics that were computed since.
        scores: Criterion -> its scores, the statistics that it read for them, and its own seconds.
        spared: Seconds of scores that were there already since the criterion under way began.
    """

    statistics: CalibrationStatistics
    seconds: dict[str, float] = field(default_factory=dict)
    read: set[str] = field(default_factory=set)
    started: float = 0.0
    computed: float = 0.0
    scores: dict[str, tuple[Floats, frozenset[str], float]] = field(default_factory=dict)
    spared: float = 0.0

    def __getattr__(self, name: str) -> Any:
        if name not in STATISTICS:
            return getattr(self.statistics, name)
        started, statistic = time.monotonic(), STATISTICS[name][0]
        value = getattr(self.statistics, name)
        if isinstance(value, BySite):  # which takes statistics when the first of them is asked for
            value[next(iter(value))]
        taken = time.monotonic() - started
        self.seconds.setdefault(statistic, taken)
        self.computed += taken
        self.read.add(statistic)
        return value

    def scored(self, name: str, score: Callable[[], Floats]) -> Floats:
        """Gives the scores of a criterion, [K], computed once; what that took is charged each time."""
        first = name not in self.scores
        if first:
            started, before = time.monotonic(), self.computed
            scores = score()
            self.scores[name] = scores, frozenset(self.read), time.monotonic() - started - self.computed + before
        scores, read, seconds = self.scores[name]
        self.read |= read
        self.spared += 0.0 if first else seconds
        return scores

    def start(self) -> None:
        """Begins a criterion."""
        self.read, self.computed, self.spared, self.started = set(), 0.0, 0.0, time.monotonic()

    def stop(self) -> float:
        """Gives the seconds of the criterion: its own, and those of the statistics that it read."""
        own = time.monotonic() - self.started - self.computed + self.spared
        return own + sum(self.seconds[statistic] for statistic in self.read)

    def passes(self) -> tuple[int, int]:
        """Gives the forward and backward passes over the calibration data that its statistics take."""
        costs = {statistic: passes for statistic, *passes in STATISTICS.values()}
        costs["kfac_factors"][1] = self.statistics.kfac_passes if "kfac_factors" in self.read else 0
        return sum(costs[name][0] for name in self.read), sum(costs[name][1] for name in self.read)
