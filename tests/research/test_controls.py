"""Controls that measure sets: they find what is known to be best, within their budget of tokens."""

import numpy as np
import pytest
import torch

from hf_mabprune.effects.pulls.cost import Cost
from hf_mabprune.effects.rewards import Observation
from hf_mabprune.tasks.batch import Batch
from research.benchmarks.controls import CONTROLS, Control
from tests.search.known_arms import ARMS, plan
from tests.seeds import moved


class Additive:
    """Arms whose removal costs what is known; an observation costs ten tokens."""

    def __init__(self) -> None:
        self.harm = np.random.default_rng(moved(0)).permutation(ARMS).astype(float)
        self.batches = [Batch(input_ids=torch.zeros(2, 5))] * 7
        self.cost = Cost()
        self.seen: list[tuple[int, np.ndarray]] = []

    def observe(self, batch: int, kept: np.ndarray) -> Observation:
        self.cost += Cost(forward_tokens=10)
        self.seen.append((batch, kept))
        value = torch.tensor([float(self.harm[~kept].sum())])
        return Observation(loss=value, kl=value, correct=value)


@pytest.mark.parametrize("control", CONTROLS.values(), ids=CONTROLS)
def test_it_approaches_the_best_set_within_its_budget(control: Control) -> None:
    pulls = Additive()
    kept = control(pulls, plan(), 20_000, 0)  # type: ignore[arg-type]
    best, mean = np.sort(pulls.harm)[: ARMS // 4].sum(), pulls.harm.mean() * (ARMS // 4)
    assert (~kept).sum() == ARMS // 4
    assert pulls.harm[~kept].sum() <= best + 0.05 * (mean - best)
    assert 20_000 <= pulls.cost.forward_tokens < 20_000 + 40 * 10
    assert all((~seen).sum() == ARMS // 4 for _, seen in pulls.seen), "every set has the target's size"
    assert {batch for batch, _ in pulls.seen} == set(range(7))


@pytest.mark.parametrize("control", CONTROLS.values(), ids=CONTROLS)
def test_the_same_seed_gives_the_same_set(control: Control) -> None:
    first, second = (control(Additive(), plan(), 2_000, 3) for _ in range(2))  # type: ignore[arg-type]
    assert np.array_equal(first, second)
