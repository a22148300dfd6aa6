"""The number of threads follows what trials say, and a number that somebody has chosen is left alone."""

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from transformers import BertConfig, BertModel, LlamaConfig

from hf_mabprune.evaluation.latency import measure_latency
from hf_mabprune.runtime import threads
from hf_mabprune.runtime.threads import EVERY, SHARE, ThreadChoice
from hf_mabprune.tasks.batch import Batch


class Machine:
    """A clock, and cores on which a trial takes as long as `seconds` says for each number of threads."""

    def __init__(self, seconds: dict[int, float]) -> None:
        self.seconds, self.now, self.threads, self.trials = seconds, 0.0, max(seconds), 0
        self.said: list[str] = []
        self.choice = ThreadChoice(sorted(seconds, reverse=True), self.trial, self.said.append, self.use, self.clock)

    def trial(self) -> None:
        self.now += self.seconds[self.threads]
        self.trials += 1

    def use(self, count: int) -> None:
        self.threads = count

    def clock(self) -> float:
        return self.now

    def later(self, **changed: float) -> None:
        """A check when the next one is due, with other times: `one=...`, `two=...`."""
        self.seconds |= {{"one": 1, "two": 2}[name]: value for name, value in changed.items()}
        self.now = max(self.now, self.choice.due)
        self.choice.check()


def test_all_threads_stay_where_they_are_fastest_and_nothing_is_said() -> None:
    machine = Machine({2: 0.02, 1: 0.03})
    machine.choice.check()
    assert machine.threads == 2 and machine.said == []


def test_fewer_threads_are_taken_where_they_are_faster_and_one_line_says_so() -> None:
    machine = Machine({2: 0.095, 1: 0.031})
    machine.choice.check()
    assert machine.threads == 1
    assert machine.said == ["threads: 1 of 2, other processes seem busy (a trial takes 31 ms with 1, 95 ms with 2)"]
    machine.later()
    assert machine.threads == 1 and len(machine.said) == 1


def test_the_number_goes_both_ways() -> None:
    machine = Machine({2: 0.02, 1: 0.03})
    machine.choice.check()
    machine.later(two=0.2)
    assert machine.threads == 1
    machine.later(two=0.02)
    assert machine.threads == 1, "a single quiet moment is not believed"
    machine.later()
    assert machine.threads == 2
    assert machine.said[-1] == "threads: 2 of 2 (a trial takes 30 ms with 1, 20 ms with 2)"
    assert len(machine.said) == 2


@pytest.mark.parametrize("seconds, kept", [({2: 0.1, 1: 0.09}, 2), ({2: 0.1, 1: 0.08}, 1)])
def test_a_small_gain_changes_nothing(seconds: dict[int, float], kept: int) -> None:
    machine = Machine(seconds)
    machine.choice.check()
    assert machine.threads == kept


def test_hysteresis_holds_in_both_directions() -> None:
    machine = Machine({2: 0.2, 1: 0.03})
    machine.choice.check()
    machine.later(two=0.028)
    assert machine.threads == 1
    machine.later(two=0.02)
    machine.later(two=0.2)
    machine.later(two=0.02)
    assert machine.threads == 1, "quiet moments with a busy one between them are not believed either"
    machine.later()
    assert machine.threads == 2


def test_half_of_many_threads_can_be_the_best() -> None:
    machine = Machine({16: 0.3, 8: 0.05, 1: 0.09})
    machine.choice.check()
    assert machine.threads == 8
    assert machine.said[0].startswith("threads: 8 of 16, other processes seem busy")


def test_trials_are_seldom_and_slow_ones_are_seldomer() -> None:
    machine = Machine({2: 0.01, 1: 0.02})
    machine.choice.check()
    spent, trials = machine.now, machine.trials
    machine.now += EVERY - 0.1
    machine.choice.check()
    assert machine.trials == trials and machine.choice.due == pytest.approx(spent + EVERY)
    slow = Machine({2: 2.0, 1: 3.0})
    slow.choice.check()
    spent = slow.now
    assert slow.choice.due == pytest.approx(spent + spent / SHARE)


def test_a_clear_case_takes_fewer_timings() -> None:
    clear, close = Machine({2: 1.0, 1: 0.1}), Machine({2: 0.1, 1: 0.1})
    clear.choice.check()
    close.choice.check()
    assert clear.trials < close.trials


def test_latencies_are_all_measured_with_the_number_of_the_first() -> None:
    machine = Machine({2: 0.02, 1: 0.03})
    machine.choice.check()
    with machine.choice.fixed():
        assert machine.threads == 2
    machine.later(two=0.2)
    trials = machine.trials
    with machine.choice.fixed():
        assert machine.threads == 2
        machine.now += 1000
        machine.choice.check()
        assert machine.trials == trials
    assert machine.threads == 1
    machine.choice.check()
    assert machine.trials > trials


def test_no_trial_comes_between_two_latencies(monkeypatch: pytest.MonkeyPatch) -> None:
    machine, seen = Machine({2: 0.2, 1: 0.03}), []
    machine.choice.check()
    monkeypatch.setattr(threads, "_active", machine.choice)

    class Model:
        device = torch.device("cpu")

        def __call__(self) -> None:
            machine.now += 1000
            machine.choice.check()
            seen.append(machine.threads)

    trials = machine.trials
    task = SimpleNamespace(inputs=lambda batch: batch, forward_options={}, predicts_tokens=False)
    measure_latency([Model(), Model()], task, Batch(), repeats=2)  # type: ignore[arg-type, list-item]
    assert seen == [1] * 8 and machine.trials == trials


@pytest.fixture
def untouched(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """As if torch took four threads by itself, and one were fastest; gives the numbers that were set."""
    used = [4]
    for name in threads.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda _: range(4), raising=False)
    monkeypatch.setattr(threads.psutil, "cpu_count", lambda logical: 4)
    monkeypatch.setattr(torch, "get_num_threads", lambda: used[-1])
    monkeypatch.setattr(torch, "set_num_threads", used.append)
    monkeypatch.setattr(ThreadChoice, "_times", lambda choice: {4: 0.3, 2: 0.2, 1: 0.1})
    yield used


def accelerator(device: str = "cpu", processes: int = 1) -> Accelerator:
    """What of an accelerator is read."""
    return SimpleNamespace(device=torch.device(device), num_processes=processes, print=print)  # type: ignore[return-value]


def passed() -> None:
    """One forward pass of a small model."""
    config = BertConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    BertModel(config).eval()(input_ids=torch.ones(1, 2, dtype=torch.long))


def test_a_run_begins_with_a_trial_and_ends_with_the_number_it_found(
    untouched: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    with threads.chosen(accelerator()):
        torch.nn.Linear(2, 2)(torch.ones(2))  # no model
        assert untouched == [4]
        passed()
        passed()
        assert untouched[-1] == 1
    assert untouched[-1] == 4
    assert capsys.readouterr().out.count("threads: 1 of 4") == 1
    count = len(untouched)
    passed()
    assert len(untouched) == count


def test_an_error_puts_the_number_back_too(untouched: list[int]) -> None:
    with pytest.raises(KeyboardInterrupt), threads.chosen(accelerator()):
        passed()
        raise KeyboardInterrupt
    assert untouched[-1] == 4 and threads._active is None


@pytest.mark.parametrize("name", threads.VARIABLES)
def test_a_number_from_the_environment_is_left_alone(
    name: str, untouched: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "4")
    with threads.chosen(accelerator()):
        passed()
    assert untouched == [4]


def test_a_number_that_was_set_is_left_alone(untouched: list[int]) -> None:
    torch.set_num_threads(3)
    with threads.chosen(accelerator()):
        passed()
    assert untouched == [4, 3]


@pytest.mark.parametrize("where", [accelerator("cuda"), accelerator(processes=2)])
def test_gpus_and_several_processes_are_left_alone(where: Accelerator, untouched: list[int]) -> None:
    with threads.chosen(where):
        passed()
    assert untouched == [4]


def test_one_core_is_left_alone(untouched: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda _: range(1))
    torch.set_num_threads(1)
    with threads.chosen(accelerator()):
        passed()
    assert untouched == [4, 1]


def test_physical_cores_are_a_number_that_torch_takes_by_itself(
    untouched: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads.psutil, "cpu_count", lambda logical: 2)
    assert [threads.is_chosen(number) for number in (1, 2, 3, 4)] == [True, False, True, False]


def test_a_trial_takes_no_part_in_the_run() -> None:
    """Neither random numbers nor gradients nor modules; large models get fewer positions."""
    state = torch.get_rng_state()
    with torch.enable_grad():
        small = threads.trial_of(BertConfig(hidden_size=8, intermediate_size=8))()
        large = threads.trial_of(LlamaConfig(hidden_size=1024, intermediate_size=2048))()
    assert not small.requires_grad and torch.isfinite(small).all()
    assert len(large) < len(small) == threads.ROWS
    assert torch.equal(torch.get_rng_state(), state)


def test_blas_libraries_follow_and_get_their_own_number_back(monkeypatch: pytest.MonkeyPatch) -> None:
    class Library:
        num_threads = 8

        def set_num_threads(self, count: int) -> None:
            self.num_threads = count

    library, found = Library(), SimpleNamespace(select=lambda user_api: SimpleNamespace(lib_controllers=[library]))
    monkeypatch.setattr(threads, "ThreadpoolController", lambda: found)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    pools = threads.Pools(torch.get_num_threads())
    pools.use(1)
    assert library.num_threads == 1
    pools.use(4)
    assert library.num_threads == 8
