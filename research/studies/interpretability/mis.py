"""The machine interpretability score of units (Zimmermann, Klindt and Brendel 2024), on any inputs.

Can what a unit responds to be told from examples? Of each unit, N tasks are made of the inputs that activate it most
and least. A task shows K of the most activating inputs, E+, and K of the least, E-, and asks which of two further
inputs from the same extremes, q+ and q-, belongs to E+. With a similarity of inputs in the place of a person:

    s(q, E) = mean over k of sim(q, E_k)
    D = (s(q+, E+) - s(q+, E-)) - (s(q-, E+) - s(q-, E-))
    MIS = mean over the N tasks of sigmoid(alpha D)

0.5 is chance. D, and so the score, is the same for a unit and for its negative. Beside the score stands the share of
tasks with D > 0, which does not depend on the scale of the similarity.

This project's choices, which the formula leaves open: the extremes of a unit are the N (K + 1) inputs at either end,
so that no input serves twice; a draw shares them out to tasks; ties are broken by a random order of the inputs.

Symbols: P inputs (probes); U units; N tasks; K references of either kind in a task.
"""

from dataclasses import dataclass

import torch

ALPHA = 0.16
CONSTANT = 1e-6  # of the largest activation: a unit that varies by less over all inputs does not vary


@dataclass(frozen=True)
class Trials:
    """Says what a unit is asked.

    Attributes:
        tasks: N.
        references: K.
        alpha: Slope of the sigmoid.
    """

    tasks: int = 20
    references: int = 9
    alpha: float = ALPHA

    def __post_init__(self) -> None:
        if self.tasks < 1 or self.references < 1 or not self.alpha > 0:
            raise ValueError(
                "tasks and references must be at least 1 and alpha above 0, "
                f"got {self.tasks}, {self.references} and {self.alpha}"
            )

    @property
    def extremes(self) -> int:
        """Counts the inputs that are taken at either end of a unit's activations."""
        return self.tasks * (self.references + 1)

    def check(self, inputs: int) -> None:
        """Raises ValueError if there are too few inputs for both ends."""
        if 2 * self.extremes > inputs:
            raise ValueError(
                f"{self.tasks} tasks of {self.references} references and a query take {2 * self.extremes} inputs, "
                f"got {inputs}: take fewer tasks or references, or more inputs"
            )


@dataclass(frozen=True)
class Scores:
    """Holds what was measured of units.

    Attributes:
        differences: D of every task of each unit, [U, N].
        alpha: Slope of the sigmoid.
    """

    differences: torch.Tensor
    alpha: float

    @property
    def mis(self) -> torch.Tensor:
        """The machine interpretability score of each unit, [U]."""
        return torch.sigmoid(self.alpha * self.differences).mean(1)

    @property
    def solved(self) -> torch.Tensor:
        """The share of each unit's tasks with D > 0, [U]."""
        return (self.differences > 0).float().mean(1)


def unit_scores(activations: torch.Tensor, similarity: torch.Tensor, trials: Trials, seed: int = 0) -> Scores:
    """Asks every unit its tasks.

    Args:
        activations: What each input does to each unit, one number, [P, U].
        similarity: Similarity of any two inputs, [P, P].
        trials: What a unit is asked.
        seed: Seed of the order of ties and of the draw of tasks.

    Raises:
        ValueError: If there are too few inputs, or the shapes do not go together.
    """
    inputs = len(activations)
    if similarity.shape != (inputs, inputs):
        raise ValueError(f"similarity must be [{inputs}, {inputs}], got {list(similarity.shape)}")
    trials.check(inputs)
    generator = torch.Generator().manual_seed(seed)
    most, least = (_tasks(ends, trials, generator) for ends in extremes(activations, trials.extremes, generator))

    def near(queries: torch.Tensor, references: torch.Tensor) -> torch.Tensor:  # s(q, E), [U, N]
        return similarity[queries.unsqueeze(-1), references].mean(-1)

    (q_most, e_most), (q_least, e_least) = most, least
    differences = near(q_most, e_most) - near(q_most, e_least) - near(q_least, e_most) + near(q_least, e_least)
    return Scores(differences, trials.alpha)


def extremes(activations: torch.Tensor, count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Gives the inputs that activate each unit most, the very most first, and least: twice [U, count]."""
    shuffle = torch.randperm(len(activations), generator=generator)
    by_unit = activations[shuffle].T.contiguous()  # a sort of rows takes a fraction of the time of one of columns
    order = shuffle[by_unit.argsort(dim=1, descending=True, stable=True)]  # [U, P]
    return order[:, :count], order[:, -count:].flip(1)


def _tasks(ends: torch.Tensor, trials: Trials, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Shares the inputs of one end out to tasks: queries, [U, N], and references, [U, N, K]."""
    drawn = ends.gather(1, torch.rand(ends.shape, generator=generator).argsort(1))
    tasks = drawn.view(len(ends), trials.tasks, trials.references + 1)
    return tasks[..., 0], tasks[..., 1:]


def varying(activations: torch.Tensor) -> torch.Tensor:
    """Tells which units any input changes, [U]; the others were pruned away, or only see what was.

    Args:
        activations: [P, U].
    """
    highest, lowest = activations.amax(0), activations.amin(0)
    return highest - lowest > CONSTANT * torch.maximum(highest.abs(), lowest.abs())


def shuffled(activations: torch.Tensor, seed: int) -> torch.Tensor:
    """Gives the activations of each unit to other inputs, at random: a control whose score is 0.5.

    Args:
        activations: [P, U].
        seed: Seed of the draw, one of its own for each unit.
    """
    generator = torch.Generator().manual_seed(seed)
    return activations.gather(0, torch.rand(activations.shape, generator=generator).argsort(0))


def random_directions(activations: torch.Tensor, seed: int) -> torch.Tensor:
    """Replaces units by as many random directions of their layer: a control that no unit is special in.

    Args:
        activations: Of the units of one layer, [P, U].
        seed: Seed of the directions.

    Returns:
        Sums of the standardised activations with Gaussian weights, [P, U].
    """
    units = activations.shape[1]
    generator = torch.Generator().manual_seed(seed)
    spread = activations.std(0, correction=0)
    standard = (activations - activations.mean(0)) / torch.where(spread > 0, spread, 1)
    return standard @ torch.randn(units, units, generator=generator)
