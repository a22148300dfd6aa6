"""What one process of a launch does for all of them, so that an error of one is an error of all."""

from collections.abc import Callable
from typing import Any, TypeVar

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

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


def agree(accelerator: Accelerator, what: str, own: dict[str, Any]) -> None:
    """Makes sure that all processes of a launch work on the same thing.

    Args:
        accelerator: Processes of the launch, all of which call this.
        what: What must be the same, for the message, e.g. "settings".
        own: Name -> value, as this process has it.

    Raises:
        ValueError: In all processes, if a value differs.
    """
    if accelerator.num_processes == 1:
        return
    everywhere = gather_object([own])
    for process, other in enumerate(everywhere):
        names = sorted({*everywhere[0], *other})
        if differing := [name for name in names if everywhere[0].get(name) != other.get(name)]:
            raise ValueError(
                f"all processes of a launch must have the same {what}, but process {process} differs from process 0 "
                f"in {', '.join(differing)}: start them with one command, on the same files"
            )
