"""A training that was stopped after any step, kept on disk and taken up again, ends as if it had not been."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hf_mabprune.recovery.course import TrainingState
from hf_mabprune.runtime.trainings import read_training, write_training
from tests.recovery.case import Case, same

STEPS = 6


class Stopped(KeyboardInterrupt):
    """The run shall stop."""


class OnDisk:
    """Keeps a training in a file, and stops it after a step."""

    def __init__(self, path: Path, stop: int = STEPS) -> None:
        self.path, self.stop, self.steps = path, stop, 0

    def read(self) -> TrainingState | None:
        return read_training(self.path) if self.path.exists() else None

    def open(self) -> AbstractContextManager[None]:
        return nullcontext()

    def keep(self, state: Callable[[], TrainingState], ended: bool) -> None:
        self.steps += 1
        write_training(self.path, state())
        assert ended == (read_training(self.path).step == STEPS)
        if self.steps == self.stop:
            raise Stopped


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_training_that_was_stopped_twice_ends_with_the_same_weights(method: str, tmp_path: Path) -> None:
    whole, case = Case("llama"), Case("llama")
    expected = whole.recover(method=method, max_steps=STEPS, alpha=0.5)
    begun, path = case.weights(), tmp_path / "training.safetensors"
    for stop in (2, 1):
        with pytest.raises(Stopped):
            case.recover(method=method, max_steps=STEPS, alpha=0.5, kept=OnDisk(path, stop))
        assert same(case.weights(), begun), "a training that was stopped leaves the weights alone"
    kept = OnDisk(path, stop=STEPS)
    figures = case.recover(method=method, max_steps=STEPS, alpha=0.5, kept=kept)
    assert kept.steps == STEPS - 3
    assert same(case.weights(), whole.weights())
    assert replace(figures, seconds=0.0) == replace(expected, seconds=0.0)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_training_that_had_ended_is_not_made_again(method: str, tmp_path: Path) -> None:
    path = tmp_path / "training.safetensors"
    whole, case = Case("llama"), Case("llama")
    expected = whole.recover(method=method, max_steps=STEPS, alpha=0.5, kept=OnDisk(path, stop=STEPS + 1))
    sums = [name for name in read_training(path).tensors if not name.startswith("weight ")]
    assert not sums, "which only the next step would need"
    kept = OnDisk(path)
    figures = case.recover(method=method, max_steps=STEPS, alpha=0.5, kept=kept)
    assert kept.steps == 0 and same(case.weights(), whole.weights())
    assert figures.seconds > read_training(path).seconds > 0
    assert replace(figures, seconds=0.0) == replace(expected, seconds=0.0)


def test_what_is_kept_is_read_back_exactly_and_damage_is_told(tmp_path: Path) -> None:
    path = tmp_path / "training.safetensors"
    tensors = {"weight a": torch.randn(3, 4).T, "exp_avg a": torch.randn(3, 4), "step a": torch.tensor(7.0)}
    state = TrainingState(7, 1.5, [10, 20], [0.1, 1 / 3], [65536.0, 3.0], tensors)
    write_training(path, state)
    read = read_training(path)
    assert same(read.tensors, tensors) and replace(read, tensors={}) == replace(state, tensors={})
    saved = path.read_bytes()
    for place in (12, len(saved) // 2, len(saved) - 2):
        path.write_bytes(saved[:place] + bytes([saved[place] ^ 1]) + saved[place + 1 :])
        with pytest.raises(ValueError, match=r"training.safetensors is .*start anew"):
            read_training(path)
    path.write_bytes(saved[: len(saved) // 2])
    with pytest.raises(ValueError, match="is no saved training"):
        read_training(path)
    assert [each.name for each in tmp_path.iterdir()] == [path.name]
