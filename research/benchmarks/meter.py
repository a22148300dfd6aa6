"""What a criterion costs, where several share the statistics that they are made from."""

import time
from dataclasses import dataclass, field
from typing import Any

from hf_mabprune.criteria.statistics import CalibrationStatistics

STATISTICS = {  # property -> what is computed for it, and its passes over the data: forward, backward
    "moments": ("moments", 1, 0),
    "kfac_factors": ("kfac_factors", 1, 0),  # and as many backward passes as the outputs need
    "magnitudes": ("magnitudes", 1, 0),
    "gradients": ("gradients", 1, 1),
    "example_gradients": ("gradients", 1, 1),
}


@dataclass
class Meter:
    """Notes which statistics a criterion reads, so that each is charged for what all share."""

    statistics: CalibrationStatistics
    seconds: dict[str, float] = field(default_factory=dict)  # statistic -> of its computation
    read: set[str] = field(default_factory=set)
    started: float = 0.0
    computed: float = 0.0  # seconds of statistics since the start

    def __getattr__(self, name: str) -> Any:
        if name not in STATISTICS:
            return getattr(self.statistics, name)
        started, statistic = time.monotonic(), STATISTICS[name][0]
        value = getattr(self.statistics, name)
        taken = time.monotonic() - started
        self.seconds.setdefault(statistic, taken)
        self.computed += taken
        self.read.add(statistic)
        return value

    def start(self) -> None:
        """A criterion begins."""
        self.read, self.computed, self.started = set(), 0.0, time.monotonic()

    def stop(self) -> float:
        """Seconds of the criterion: its own, and those of the statistics that it read, whoever computed them."""
        own = time.monotonic() - self.started - self.computed
        return own + sum(self.seconds[statistic] for statistic in self.read)

    def passes(self) -> tuple[int, int]:
        """Forward and backward passes over the calibration data."""
        costs = {statistic: passes for statistic, *passes in STATISTICS.values()}
        costs["kfac_factors"][1] = self.statistics.kfac_passes if "kfac_factors" in self.read else 0
        return sum(costs[name][0] for name in self.read), sum(costs[name][1] for name in self.read)
