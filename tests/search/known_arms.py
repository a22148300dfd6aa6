"""Arms whose effects are known, and a plan over them."""

import numpy as np
import torch

from hf_mabprune.arms import ArmTable
from hf_mabprune.config import TargetConfig
from hf_mabprune.effects.pulls.cost import Cost
from hf_mabprune.effects.rewards import Observation
from hf_mabprune.selection.plan import Plan
from hf_mabprune.selection.target import make_plan
from tests.problems import limits

ARMS, LAYERS = 40, 2


class KnownArms:
    """Arms with known mean effects; one that has a twin becomes harmful once the twin is gone."""

    def __init__(self, noise: float = 0.0) -> None:
        self.means = -np.arange(ARMS, dtype=float) / ARMS  # arm 0 is the safest
        self.noise = noise
        self.batches = list(range(5))
        self.cost = Cost()
        self.calls: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self.kept = np.ones(ARMS, dtype=bool)
        self.twins = (0, 1)
        self.broken: list[int] = []
        self.arms_a_forward = 1

    def forget(self) -> None:
        """Has nothing in reserve."""

    def set_context(self, kept: np.ndarray) -> None:
        self.kept = kept.copy()

    def pull(self, arms: np.ndarray, batches: np.ndarray) -> np.ndarray:
        self.calls.append((self.kept.copy(), arms, batches.copy()))
        means = self.means[arms] + self.noise * np.sin(37.0 * arms + 11.0 * batches)
        one, other = self.twins
        means[(arms == other) & ~self.kept[one]] = -10.0
        means[np.isin(batches, self.broken)] = np.nan
        return np.stack([means, means**2], axis=1)

    def cause(self, *batches: int) -> str:
        return f"batch {batches[0]} was broken by hand"

    def observe(self, batch: int, kept: np.ndarray) -> Observation:
        value = torch.tensor([float(-self.means[~kept].sum())])
        return Observation(loss=value, kl=value, correct=value)


def plan(goes: float = 0.25) -> Plan:
    rows = np.arange(ARMS)
    layer = rows // (ARMS // LAYERS)
    arms = ArmTable(
        site=np.array([f"neuron.{number}" for number in layer]),
        kind=np.array(["neuron"] * ARMS),
        layer=layer,
        index=rows % (ARMS // LAYERS),
        start=4 * (rows % (ARMS // LAYERS)),
        stop=4 * (rows % (ARMS // LAYERS)) + 4,
        parameters=np.full(ARMS, 100),
        macs=np.full(ARMS, 1000),
    )
    totals = {"parameters": 10_000, "macs": 100_000}
    return make_plan(arms, TargetConfig(neurons=goes), totals, "per_layer", limits(arms))
