"""The machine interpretability score: by hand, on units that are planted, and on what says nothing."""

import math

import pytest
import torch

from research.studies.interpretability.mis import (
    Trials,
    extremes,
    random_directions,
    shuffled,
    unit_scores,
    varying,
)
from tests.seeds import moved

CLASSES, PROBES = 4, 160
TRIALS = Trials(tasks=4, references=4)  # 20 inputs at either end; a class has 40


def world() -> tuple[torch.Tensor, torch.Tensor]:
    """Labels of probes, and a similarity that is 1 within a class and 0 between classes."""
    labels = torch.arange(PROBES) % CLASSES
    return labels, (labels[:, None] == labels).float()


def noise(units: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(PROBES, units, generator=torch.Generator().manual_seed(moved(seed)))


def test_a_score_worked_out_by_hand() -> None:
    similarity = torch.full((4, 4), 0.15).fill_diagonal_(1)
    similarity[0, 1] = similarity[1, 0] = 0.9
    similarity[2, 3] = similarity[3, 2] = 0.7
    # One task: whichever of 0 and 1 is asked for, the other is shown; so too of 2 and 3.
    # D = (0.9 - 0.15) - (0.15 - 0.7) = 1.3, and the score is the sigmoid of 0.16 * 1.3.
    scores = unit_scores(torch.tensor([[4.0], [3], [2], [1]]), similarity, Trials(tasks=1, references=1))
    assert scores.mis.item() == pytest.approx(1 / (1 + math.exp(-0.208)), abs=1e-6) and scores.solved.item() == 1
    negative = unit_scores(torch.tensor([[1.0], [2], [3], [4]]), similarity, Trials(tasks=1, references=1))
    assert negative.mis.item() == pytest.approx(scores.mis.item())
    steep = unit_scores(torch.tensor([[4.0], [3], [2], [1]]), similarity, Trials(1, 1, alpha=2.0))
    assert steep.mis.item() == pytest.approx(1 / (1 + math.exp(-2.6)), abs=1e-6)


def test_units_that_fire_for_one_class_score_high_and_shuffled_ones_half() -> None:
    labels, similarity = world()
    planted = torch.stack([(labels == label).float() for label in range(CLASSES)], 1)
    found = unit_scores(planted + 0.01 * noise(CLASSES), similarity, TRIALS, seed=1)
    # All that a unit responds to is of its class and like it; of the rest a third is alike: D is 1 + 1/3 on average.
    assert found.mis.min() > 0.53 and found.solved.min() == 1
    assert found.mis.mean().item() == pytest.approx(1 / (1 + math.exp(-0.16 * 4 / 3)), abs=0.005)

    many = (planted + 0.01 * noise(CLASSES)).repeat(1, 100)
    chance = unit_scores(shuffled(many, seed=2), similarity, TRIALS, seed=1).mis
    error = chance.std() / len(chance) ** 0.5
    assert abs(chance.mean() - 0.5) < 4.5 * error and found.mis.min() > chance.mean() + 4.5 * error


def test_order_is_all_that_counts() -> None:
    _, similarity = world()
    units = noise(3)
    found = unit_scores(units, similarity, TRIALS).mis
    assert torch.equal(found, unit_scores(units.exp() * 7 - 2, similarity, TRIALS).mis)


def test_extremes_are_the_ends_and_ties_are_drawn() -> None:
    generator = torch.Generator().manual_seed(0)
    most, least = extremes(torch.tensor([[1.0, 0], [5, 0], [3, 0], [2, 0]]), 2, generator)
    assert most[0].tolist() == [1, 2] and least[0].tolist() == [0, 3]
    assert set(most[1].tolist()) | set(least[1].tolist()) == {0, 1, 2, 3}
    drawn = {
        tuple(extremes(torch.zeros(4, 1), 2, torch.Generator().manual_seed(seed))[0][0].tolist()) for seed in range(30)
    }
    assert len(drawn) > 1


def test_no_input_serves_twice_in_a_unit() -> None:
    seen = torch.zeros(PROBES)

    most, least = extremes(noise(1), TRIALS.extremes, torch.Generator().manual_seed(0))
    seen[most[0]] += 1
    seen[least[0]] += 1
    assert seen.max() == 1 and seen.sum() == 2 * TRIALS.extremes == 40


def test_what_cannot_be_asked_is_refused_with_the_numbers() -> None:
    _, similarity = world()
    with pytest.raises(ValueError, match=r"20 tasks of 9 references and a query take 400 inputs, got 160"):
        unit_scores(noise(1), similarity, Trials())
    with pytest.raises(ValueError, match=r"similarity must be \[160, 160\], got \[160, 4\]"):
        unit_scores(noise(1), similarity[:, :4], TRIALS)
    for wrong in ({"tasks": 0}, {"references": 0}, {"alpha": 0.0}):
        with pytest.raises(ValueError, match="must be at least 1 and alpha above 0"):
            Trials(**wrong)  # type: ignore[arg-type]


def test_units_that_no_input_changes_are_known() -> None:
    units = torch.stack([torch.zeros(5), torch.full((5,), 3.0), torch.arange(5.0), torch.full((5,), 3.0)], 1)
    units[0, 3] += 1e-7
    assert varying(units).tolist() == [False, False, True, False]


def test_controls_keep_what_they_should() -> None:
    units = noise(6)
    mixed = shuffled(units, seed=0)
    assert torch.equal(mixed.sort(dim=0).values, units.sort(dim=0).values) and not torch.equal(mixed, units)
    assert not torch.equal(mixed[:, 0].argsort(), mixed[:, 1].argsort())
    units[:, 2] = 1.0  # pruned away
    turned = random_directions(units, seed=0)
    assert turned.shape == units.shape and torch.isfinite(turned).all()
    assert torch.linalg.matrix_rank(torch.cat([turned, units - units.mean(0)], 1), rtol=1e-4) == 5
