"""Modules that run something else for a while: what was recorded, in the place of what would be computed again."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def replaced(forwards: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Modules run the given functions instead of their forwards, while the context is open."""
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


def answer(output: Any, *_: Any, **__: Any) -> Any:
    """A forward that runs nothing."""
    return output
