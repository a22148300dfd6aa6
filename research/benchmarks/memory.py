"""What memory a run takes at its peak, beside what it should: one run for each size, of a model as it is.

On a CPU anonymous memory is measured: what cannot be dropped and read again from a file. On a GPU it is what torch has
allocated there. The goal: 1.15 times the weights as loaded, the limit of what is kept (`search.memory`), three square
matrices of the widest layer in float32, and 1.5 GiB for libraries, activations and outputs.
"""

import gc
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import torch

from hf_mabprune.architectures import architecture_of
from hf_mabprune.config import PruneConfig, PruningConfig
from hf_mabprune.pipeline import prune_from_config
from hf_mabprune.runtime.heap import trim
from hf_mabprune.session import Session

FRACTIONS = (0.1, 0.3, 0.5)  # of all parameters, that are removed where settings list no sizes
SHARE, MATRICES, REST = 1.15, 3, 1.5 * 2**30
EVERY = 0.05  # seconds between two looks
MIB = 2**20
MAPS = Path("/proc/self/smaps_rollup")


class Peak:
    """The largest number of bytes that were held while a context was open."""

    def __init__(self) -> None:
        self.bytes = 0

    def look(self) -> None:
        """Takes down what is held now."""
        self.bytes = max(self.bytes, held())


def held() -> int:
    """Gives the bytes of this process that are not clean pages of files; of a GPU, what torch took at most."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    pages = {name: 1024 * int(size) for name, size in re.findall(r"^(\w+):\s+(\d+) kB", MAPS.read_text(), re.M)}
    return pages["Rss"] - pages["Shared_Clean"] - pages["Private_Clean"]


@contextmanager
def watched() -> Iterator[Peak]:
    """Looks at what is held, in a thread of its own, while the context is open."""
    peak, over = Peak(), threading.Event()

    def watch() -> None:
        while not over.wait(EVERY):
            peak.look()

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        over.set()
        thread.join()
        peak.look()


def clear() -> None:
    """Gives free memory back to the system, as far as the C library can."""
    gc.collect()
    trim()


def measure(settings: PruneConfig) -> pd.DataFrame:
    """Runs what the settings say once for each size: one row a size, in MiB.

    Args:
        settings: Run settings. A target that is a list is measured size by size, else `FRACTIONS` are.
    """
    rows = []
    for size in sizes_of(settings.prune):
        output = settings.output.model_copy(update={"overwrite": True})
        clear()
        start = held()
        with watched() as peak:
            session = prune_from_config(settings.model_copy(update={"prune": size, "output": output})).finished.session
        rows.append({"size": size.target.name(), **goal(session), "start": start / MIB, "peak": peak.bytes / MIB})
        del session
    table = pd.DataFrame(rows)
    return table.assign(holds=table["peak"] <= table["goal"])


def sizes_of(prune: PruningConfig) -> list[PruningConfig]:
    """Gives the sizes that are measured."""
    if not prune.target.amounts():
        return prune.sizes()
    targets = [type(prune.target)(parameters=fraction) for fraction in FRACTIONS]
    return [prune.model_copy(update={"target": target}) for target in targets]


def goal(session: Session) -> dict[str, float]:
    """Gives weights, limit, matrices and what they add up to with the rest, in MiB."""
    widest = max(site.columns for site in architecture_of(session.dense).sites(session.dense) if site.kind != "expert")
    weights, limit, matrices = session.dense.get_memory_footprint(), session.reserve.limit, MATRICES * 4 * widest**2
    total = SHARE * weights + limit + matrices + REST
    parts = {"weights": weights, "limit": limit, "matrices": matrices, "goal": total}
    return {name: size / MIB for name, size in parts.items()}
