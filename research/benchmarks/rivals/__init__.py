"""Methods of others, re-implemented small, to compare with: a model, data and a size in, what stays out.

All have one signature; their defaults are what their papers or public code say.
"""

from collections.abc import Callable

from research.benchmarks.rivals.base import Chosen, applied, non_embedding_parameters, removed_parameters
from research.benchmarks.rivals.gates import gates
from research.benchmarks.rivals.putri import putri
from research.benchmarks.rivals.two_ssp import two_ssp

RIVALS: dict[str, Callable[..., Chosen]] = {"2ssp": two_ssp, "putri": putri, "gates": gates}

__all__ = ["RIVALS", "Chosen", "applied", "non_embedding_parameters", "removed_parameters"]
