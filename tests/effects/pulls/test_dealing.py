"""Pulls and effects are shared out evenly: no process waits long for another."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hf_mabprune.architectures import projection_of
from hf_mabprune.effects.pulls.base import dealt
from hf_mabprune.effects.pulls.replay import ReplayPulls
from tests.problems import problem


def test_the_largest_piece_goes_to_who_has_least() -> None:
    assert dealt([5, 1, 4, 2, 3], 2) == [[0, 1, 3], [2, 4]]
    assert dealt([5, 1], 3) == [[0], [1], []]


@pytest.mark.parametrize("model_type", ["bert", "llama"])
def test_a_pull_is_taken_for_the_sites_that_it_runs(model_type: str) -> None:
    model, task, batches, arms = problem(model_type)
    pulls = ReplayPulls(model, arms, task, batches)
    first = {name: int(rows[0]) for name, rows in arms.groups()}
    pulls.pull(np.array(list(first.values())), np.zeros(len(first), dtype=int))  # records the pass in the context
    ran: list[str] = []
    for name, site in pulls.sites.items():
        module = projection_of(model, site).module
        assert module is not None
        module.register_forward_hook(lambda *_, name=name: ran.append(name))
    for name, arm in first.items():
        ran.clear()
        pulls.pull(np.array([arm]), np.array([0]))
        others = sum(each != name for each in ran) / len(pulls._parts[0])  # its own answers from the record
        assert pulls._part_of_a_pass(arm) == pytest.approx((others + 0.5) / len(pulls.sites))


@pytest.mark.parametrize("world", [2, 3])
def test_processes_get_all_cells_once_and_none_much_more_than_another(world: int) -> None:
    model, task, batches, arms = problem("bert")
    pulls = ReplayPulls(model, arms, task, batches)
    pulls.arms_a_forward = 1
    cells = pulls._cells(np.arange(len(arms)), np.arange(len(arms)) % 2)
    shares = []
    for rank in range(world):
        accelerator: Any = SimpleNamespace(process_index=rank, num_processes=world)
        pulls.accelerator = accelerator
        shares.append(pulls._share(cells))
    assert [id(cell) for share in shares for cell in share] == [id(cell) for cell in cells]
    sums, largest = [sum(cell.work for cell in share) for share in shares], max(cell.work for cell in cells)
    assert max(sums) <= sum(sums) / world + largest
    new, again = ({cell.place: cell.work for cell in reversed(each)} for each in (cells, _recorded(pulls, len(arms))))
    for place in new:  # who comes first records
        assert new[place] - again[place] == pytest.approx(pulls._inputs(place).tokens + pulls._overhead)


def _recorded(pulls: ReplayPulls, arms: int) -> list[Any]:
    """The same cells once every place has been recorded."""
    pulls._recorded.update((batch, part) for batch in (0, 1) for part in range(len(pulls._parts[batch])))
    return pulls._cells(np.arange(arms), np.arange(arms) % 2)
