"""Puts other functions in the place of modules' forwards for a while.

So a forward pass takes over what an earlier one recorded, instead of computing it again: the model's own code runs on
around it, and only what has changed costs anything.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn


@contextmanager
def replaced(forwards: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Lets modules run the given functions instead of their forwards, while the context is open.

    Args:
        forwards: Function of each module, called with what the module is called with.
    """
    # A forward set on the instance hides that of the class; one that was there before, as Accelerate's, comes back.
    own = {module: vars(module).get("forward") for module in forwards}
    try:
        for module, forward in forwards.items():
            module.forward = forward
        yield
    finally:
        for module, former in own.items():
            del module.forward
            if former is not None:
                module.forward = former


def answers(module: nn.Module) -> bool:
    """Tells whether a module gives a recorded output now, whatever it is called with."""
    forward = vars(module).get("forward")
    return isinstance(forward, partial) and forward.func is answer


def answer(output: Any, *_: Any, **__: Any) -> Any:
    """Gives a recorded output, as a forward that runs nothing: bound to `output` it takes any arguments."""
    return output
