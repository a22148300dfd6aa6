"""What one process of a launch does for all of them, so that an error of one is an error of all."""

from collections.abc import Callable
from typing import Any, TypeVar

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

T = TypeVar("T")


def on_main(accelerator: Accelerator, action: Callable[[], T]) -> T:
    """Runs an action on the main process alone; every process gets its result, or raises its error."""
    outcome: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            outcome[0] = action()
        except Exception as error:
            outcome[1] = error
    if accelerator.num_processes > 1:
        broadcast_object_list(outcome)
    result, raised = outcome
    if raised is not None:
        raise raised
    return result


def main_first(accelerator: Accelerator, action: Callable[[], T]) -> T:
    """Runs an action on the main process, then on the others, which find its downloads and caches made."""
    done: list[T] = []
    on_main(accelerator, lambda: done.append(action()))
    return done[0] if done else action()
