"""Signals are heard wherever Python is, are no trouble to what clears up, and what is ignored stays ignored."""

import os
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator

import pytest

from hf_mabprune.runtime import signals
from hf_mabprune.runtime.signals import Interrupted, deferred, heeded, pending
from tests.heard import HEARD


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Reminders after a moment, and the handlers as they were."""
    monkeypatch.setattr(signals, "AGAIN", 0.05)
    before = [signal.getsignal(number) for number in signals.SIGNALS]
    yield
    assert [signal.getsignal(number) for number in signals.SIGNALS] == before
    assert not pending()


def send(number: int = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)


def wait(seconds: float = 5.0) -> None:
    """Goes on in small steps, as a run does; a signal that is heard ends it."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.005)
    raise AssertionError("the signal was never heard")


@pytest.mark.parametrize("number", HEARD)
def test_a_signal_is_raised_with_its_number(number: signal.Signals) -> None:
    with pytest.raises(Interrupted, match=f"stopped by {number.name}") as raised, heeded():
        send(number)
        wait()
    assert raised.value.number == number and isinstance(raised.value, KeyboardInterrupt)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_that_a_weakref_callback_swallows_comes_again() -> None:
    class Thing:
        pass

    def swallowed(_: object) -> None:
        send()
        wait(0.02)

    with pytest.raises(Interrupted), heeded():
        thing = Thing()
        watched = weakref.ref(thing, swallowed)
        del thing
        assert watched() is None
        wait()


def test_a_signal_that_is_caught_by_mistake_comes_again() -> None:
    with pytest.raises(Interrupted), heeded():
        try:
            send()
            wait()
        except KeyboardInterrupt:
            pass
        wait()


def test_what_clears_up_is_left_in_peace() -> None:
    steps = 0
    with pytest.raises(Interrupted), heeded():
        try:
            send()
            wait()
        finally:
            for _ in range(40):  # four reminders
                time.sleep(0.005)
                steps += 1
    assert steps == 40


def test_a_step_is_ended_first_and_asks_for_what_came() -> None:
    with pytest.raises(Interrupted) as raised, heeded(), deferred():
        send()
        for _ in range(30):
            time.sleep(0.005)
        raise Interrupted(pending())
    assert raised.value.number == signal.SIGTERM


def test_a_second_signal_does_not_wait_for_the_step() -> None:
    with pytest.raises(Interrupted), heeded(), deferred():
        send()
        send()
        wait()


def test_a_step_that_takes_too_long_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "PATIENCE", 0.2)
    with pytest.raises(Interrupted), heeded(), deferred():
        send()
        wait()


def test_a_signal_that_came_in_a_last_step_is_not_lost() -> None:
    with pytest.raises(Interrupted), heeded():
        with deferred():
            send()
        wait()


def test_what_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with heeded():
            send(signal.SIGHUP)
            time.sleep(0.02)
            assert not pending()
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.whole
@pytest.mark.skipif(signal.SIGINT not in HEARD, reason="commands that are started here ignore it")
@pytest.mark.parametrize("command", [("-m", "hf_mabprune", "prune", "--help"), ("scripts/prune.py", "--help")])
def test_a_command_that_is_stopped_while_it_is_imported_says_nothing(command: tuple[str, ...]) -> None:
    for delay in (0.2, 0.6):
        started = subprocess.Popen(
            [sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        time.sleep(delay)
        started.send_signal(signal.SIGINT)
        _, said = started.communicate(timeout=60)
        if started.returncode:
            assert started.returncode in (-signal.SIGINT, 128 + signal.SIGINT)
            assert "site.py" in said or "Traceback" not in said, said  # Python itself may not have begun
