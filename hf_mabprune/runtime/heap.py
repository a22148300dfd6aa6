"""Freed memory goes back to the system while a run goes on.

The C library keeps what is freed between blocks that are still in use, for later. A search frees matrices of many
sizes between those that it keeps, so that what the process held grew to twice what it needed.
"""

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

EVERY = 15.0  # seconds between two looks
GROWTH = 2**28  # bytes more than after the last time: what is given back costs time again when it is asked for


@contextmanager
def trimmed() -> Iterator[None]:
    """Gives freed memory back whenever the process has grown, in a thread of its own, while the context is open.

    Nothing is done where the C library does not know how: that of GNU does. No number depends on it.
    """
    if not can_trim():
        yield
        return
    over = threading.Event()

    def keep_trimmed() -> None:
        least = held()
        while not over.wait(EVERY):
            now = held()
            if now > least + GROWTH:
                trim()
                least = held()
            else:
                least = min(least, now)

    thread = threading.Thread(target=keep_trimmed, name="heap", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def held() -> int:
    """Gives the bytes of this process that are in memory."""
    return int(psutil.Process().memory_info().rss)


def trim() -> None:
    """Gives back what is free of the C library's heap; the other threads wait for it, some 10 ms a GiB."""
    if can_trim():
        ctypes.CDLL(None).malloc_trim(0)


def can_trim() -> bool:
    """Whether the C library gives back what is free when it is asked."""
    try:
        return hasattr(ctypes.CDLL(None), "malloc_trim")
    except (OSError, TypeError):  # on Windows no library stands for the process
        return False
