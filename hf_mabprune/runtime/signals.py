"""Signals that ask a command to leave: Ctrl-C, SIGTERM, and a terminal that closes. None is lost, wherever Python is.

A handler that raises is not always heard: from a weakref callback or a `__del__` Python prints the exception and goes
on. So a thread sends the signal again and again until the exception is on its way out; while it is, the handler keeps
still, so that what clears up can do so.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))
AGAIN = 0.5  # seconds until a signal is sent again
PATIENCE = 10.0  # seconds that a signal waits for the end of a step


class Interrupted(KeyboardInterrupt):
    """A signal asked the run to leave.

    Attributes:
        number: Number of the signal.
        resume: Command that goes on; None if nothing was saved yet.
    """

    def __init__(self, number: int, resume: str | None = None) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number
        self.resume = resume


class _Listener:
    """What has come in since signals are heeded, and the thread that reminds of it."""

    def __init__(self) -> None:
        self.number: int | None = None  # of the first signal
        self.came = 0.0
        self.deferred = False
        self._reminds = False  # whether the next signal is only sent again
        self._bell, self._rope = os.pipe()
        self._owner = os.getpid()
        self._ending = threading.Lock()
        threading.Thread(target=self._remind, name="signals", daemon=True).start()

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Raises `Interrupted`, now or when the step that is under way has had its time."""
        reminder, self._reminds = self._reminds, False
        if self.number is None:
            self.number, self.came = number, time.monotonic()
            if os.getpid() == self._owner:  # a forked child has no such thread
                os.write(self._rope, b"!")
            waits = self.deferred
        else:
            waits = self.deferred and reminder and time.monotonic() - self.came < PATIENCE
        if not waits and not _is_leaving():
            raise Interrupted(self.number)

    def close(self) -> None:
        """Ends the reminders; from here on the handlers may go."""
        global _listener
        with self._ending:
            _listener = None
        if os.getpid() == self._owner:
            os.close(self._rope)

    def _remind(self) -> None:
        """Sends the signal again, until all is over; runs in the thread."""
        rung = os.read(self._bell, 1)
        while rung:
            time.sleep(AGAIN)
            with self._ending:
                if _listener is not self or self.number is None:
                    break
                self._reminds = True
                os.kill(self._owner, self.number)
        os.close(self._bell)


_listener: _Listener | None = None


def _is_leaving() -> bool:
    """Tells whether an `Interrupted` is on its way out, through whatever clears up at this moment."""
    error = sys.exc_info()[1]
    while error is not None and not isinstance(error, Interrupted):
        error = error.__context__
    return error is not None


@contextmanager
def heeded() -> Iterator[None]:
    """Turns signals into `Interrupted` while the context is open. What is ignored, as under nohup, stays ignored.

    Inside another such context, and outside the main thread, nothing changes.

    Raises:
        Interrupted: Once a signal came.
    """
    global _listener
    if _listener is not None or threading.current_thread() is not threading.main_thread():
        yield
        return
    previous: dict[int, Any] = {}
    _listener = listener = _Listener()
    try:
        for number in SIGNALS:
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                previous[number] = signal.signal(number, listener.handle)
        yield
    finally:
        listener.close()
        for taken, handler in previous.items():
            signal.signal(taken, handler)


@contextmanager
def deferred() -> Iterator[None]:
    """Lets signals wait for whoever asks for them with `pending`, but no longer than a step may take.

    A second signal of the user's does not wait.
    """
    listener = _listener
    if listener is None:
        yield
        return
    listener.deferred = True
    try:
        yield
    finally:
        listener.deferred = False


def pending() -> int:
    """Gives the number of the signal that waits, 0 where none does."""
    return (_listener.number or 0) if _listener else 0
