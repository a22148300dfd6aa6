"""How often promises are broken, and what their certainty costs: certification splits are drawn from a large pool.

The certification split of the settings is the pool. What each of its examples loses at every size is measured once and
stored; then splits are drawn from it many times, and the tests of a run choose a size by each. Draws are with
replacement: the pool is then the distribution that a split comes from, and its mean the very number that is promised.
Without, a split would come nearer to that mean than independent examples do, and a bound seem better than it is.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hf_mabprune.architectures.cost import count_parameters
from hf_mabprune.arms import Ints
from hf_mabprune.config import PromiseConfig, PruneConfig
from hf_mabprune.config.promise import Promised
from hf_mabprune.evaluation.comparison import Comparison
from hf_mabprune.evaluation.promise import Made, check_promise, holds, least_for, losses_of
from hf_mabprune.pipeline import make_model, make_size
from hf_mabprune.progress import over, stage
from hf_mabprune.result import FinishedSearch
from hf_mabprune.runtime.accelerator import make_accelerator
from hf_mabprune.search.run import search
from hf_mabprune.session import open_session
from research.benchmarks.suite import digest
from research.parquet import write_parquet

Floats = NDArray[np.float64]

KINDS: tuple[Promised, ...] = get_args(Promised)
EXACT = "changed"  # of one answer an example, which is all that this takes
JUST = 1 - 1e-9  # of what a size loses: a promise that it just breaks
CHUNK = 500  # draws that are tested at a time


@dataclass(frozen=True)
class Kept:
    """What came of one promise over all draws.

    Attributes:
        promise: What is promised, and how much of it may be lost.
        just_broken_by: Size that loses only just more of the pool; empty where the amount was given.
        examples: Of a certification split.
        smallest: The smallest size that keeps the promise on the pool; `dense` where none does.
        broken: Part of the draws whose chosen size loses more of the pool than was promised.
        limit: What that may be, 1 - confidence and three standard errors of it.
        holds: Whether it is.
        none: Part of the draws in which no size was chosen.
        found: Part of the draws in which `smallest` was chosen.
        steps: Sizes between the chosen one and `smallest`, mean over draws in which the promise was kept; where no
            size is chosen, the dense model stands for it.
        more: Part of the layers' parameters that the chosen size has more than `smallest`, mean over these draws.
    """

    promise: str
    just_broken_by: str
    examples: int
    smallest: str
    broken: float
    limit: float
    holds: bool
    none: float
    found: float
    steps: float
    more: float


@stage("benchmark")
def report(
    settings: PruneConfig, out: str, promises: Sequence[PromiseConfig], examples: Sequence[int], draws: int
) -> str:
    """Measures what is missing, draws, and gives two tables: what sizes lose of the pool, and what came of promises.

    Args:
        settings: Run settings: several sizes, and a large certification split.
        out: Parquet file of what each example loses; sizes that are in it are not made again.
        promises: Promises that are made, beside those that one of the sizes just breaks.
        examples: Sizes of the splits that are drawn.
        draws: Number of draws of each size.

    Raises:
        ValueError: If task or metric are not of one answer an example, the file has losses of other settings, or a
            promise takes more examples than a split has.
    """
    for promise, count in product(promises, examples):
        if count < (least := least_for(promise, promise.of == EXACT)):
            raise ValueError(f"{promise.of}={promise.most:g} takes {least:,} examples, got {count:,}: promise less")
    losses = Losses(out, settings).all()
    pool = losses.groupby("target", sort=False)[["left", *KINDS]].mean()
    kept = simulate(losses, promises, examples, draws, settings.seed)
    return "\n\n".join(
        table.to_markdown(floatfmt=".4g", index=index) for table, index in ((pool, True), (kept, False))
    )


class Losses:
    """What each example of the pool loses at each size, kept in a file.

    Args:
        path: Parquet file; its folder is made.
        settings: Run settings.
    """

    def __init__(self, path: str | Path, settings: PruneConfig) -> None:
        self.path, self.settings = Path(path), settings
        self.made_with = digest(settings.model_dump(mode="json", exclude={"output"}))

    def all(self) -> pd.DataFrame:
        """Gives a row for each size, from the largest model on, and example, from the shortest on, as a run has them.

        Returns:
            Columns `target`; `left`, the part of the layers' parameters that stays; `changed`, `kl` and `metric`.
        """
        names = [size.target.name() for size in self.settings.prune.sizes()]
        if missing := [name for name in names if name not in set(self._read()["target"])]:
            for name, rows in self._measured(missing):
                self._add(rows.assign(target=name, settings=self.made_with))
        return self._read().sort_values("target", key=lambda column: column.map(names.index), kind="stable")

    def _measured(self, missing: Sequence[str]) -> Iterator[tuple[str, pd.DataFrame]]:
        """Searches, makes the sizes that are missing, and measures each on the pool."""
        session = open_session(self.settings, make_accelerator())
        comparison, sizes = Comparison(session), self.settings.prune.sizes()
        check_promise(comparison, PromiseConfig(metric=0.5))
        plans = [session.plans(size).search for size in sizes]
        finished = FinishedSearch(comparison, *search(session, plans), make_size)
        parts = "ffn_parameters", "attention_parameters"
        for size in over([size for size in sizes if size.target.name() in missing], "sizes", "sizes"):
            made = make_model(finished, size)
            counts = count_parameters(made.model)
            left = sum(counts[part] for part in parts) / sum(session.totals[part] for part in parts)
            yield size.target.name(), pd.DataFrame(lost_by(comparison, made)).assign(left=left)

    def _read(self) -> pd.DataFrame:
        """Reads the rows that are there; raises ValueError where they are of other settings."""
        if not self.path.exists():
            return pd.DataFrame(columns=["target"])
        rows = pd.read_parquet(self.path)
        if "settings" not in rows or set(rows["settings"]) != {self.made_with}:
            raise ValueError(f"{self.path} holds no losses of these settings; use another --out")
        return rows

    def _add(self, rows: pd.DataFrame) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_parquet(self.path, pd.concat([self._read(), rows] if self.path.exists() else [rows]))


def lost_by(comparison: Comparison, made: Made) -> dict[str, Floats]:
    """Measures what each example of the pool loses by a size: promise -> [N], as a run's tests take it."""
    measured = comparison.on_certification(made.model)
    return {kind: losses_of(PromiseConfig(**{kind: 0.5}), *measured)[0] for kind in KINDS}


def simulate(
    losses: pd.DataFrame, promises: Sequence[PromiseConfig], examples: Sequence[int], draws: int, seed: int
) -> pd.DataFrame:
    """Makes promises by drawn certification splits: one row each, and size of the splits.

    Args:
        losses: As `Losses.all` gives them.
        promises: Promises, beside those that one of the sizes just breaks and a split is large enough for.
        examples: Sizes of the splits.
        draws: Number of draws of each size.
        seed: Of the draws.
    """
    names = [str(name) for name in losses["target"].unique()]
    left = np.array([1.0, *losses.groupby("target", sort=False)["left"].first()])
    lost = {
        kind: np.stack([rows.to_numpy() for _, rows in losses.groupby("target", sort=False)[kind]]) for kind in KINDS
    }
    wanted = [("", promise) for promise in promises]
    for kind, pool in lost.items():
        edges = zip(names, pool.mean(1) * JUST, strict=True)
        wanted += [(name, PromiseConfig(**{kind: edge})) for name, edge in edges if 0 < edge < 1]
    rows = []
    for count in examples:
        drawn = splits(len(losses) // len(names), count, draws, seed)
        within = [(just, promise) for just, promise in wanted if holds(promise, np.zeros(count), promise.of == EXACT)]
        for just, promise in over(within, f"promises by {count:,} examples", "promises"):
            chosen = chosen_by(promise, lost[promise.of], drawn)
            rows.append(_kept(promise, just, lost[promise.of].mean(1), chosen, count, names, left))
    return pd.DataFrame(rows)


def splits(pool: int, count: int, draws: int, seed: int) -> Ints:
    """Draws certification splits, [draws, count]: numbers of examples in the order of the pool, which a run measures
    its splits in, too."""
    return np.sort(np.random.default_rng(seed).integers(pool, size=(draws, count)), axis=1)


def chosen_by(promise: PromiseConfig, lost: Floats, drawn: Ints) -> Ints:
    """Tests sizes in their order until one fails, as `smallest_that_holds` does.

    Args:
        promise: What must not be lost.
        lost: What the examples of the pool lose, [sizes, N].
        drawn: Splits, [draws, n].

    Returns:
        [draws], number of sizes before the first that fails: the last of them is chosen.
    """
    chosen = np.zeros(len(drawn), dtype=np.int64)
    for start in range(0, len(drawn), CHUNK):
        passed = np.arange(start, min(start + CHUNK, len(drawn)))
        for values in lost:
            passed = passed[holds(promise, values[drawn[passed]], promise.of == EXACT)]
            chosen[passed] += 1
    return chosen


def _kept(
    promise: PromiseConfig, just: str, risks: Floats, chosen: Ints, count: int, names: Sequence[str], left: Floats
) -> Kept:
    """Sums up the sizes that draws have chosen, [draws], of those with these risks on the pool, [sizes]."""
    keeps = np.concatenate([[True], risks <= promise.most])  # the dense model loses nothing
    smallest = int(np.flatnonzero(keeps)[-1])
    broken, level = ~keeps[chosen], 1 - promise.confidence
    limit = level + 3 * np.sqrt(level * (1 - level) / len(chosen))
    away = chosen[~broken]
    return Kept(
        promise=f"{promise.of} {promise.most:.4g}",
        just_broken_by=just,
        examples=count,
        smallest=["dense", *names][smallest],
        broken=float(broken.mean()),
        limit=float(limit),
        holds=bool(broken.mean() <= limit),
        none=float((chosen == 0).mean()),
        found=float((chosen == smallest).mean()),
        steps=float((smallest - away).mean()),
        more=float((left[away] - left[smallest]).mean()),
    )


def read_promise(given: str) -> PromiseConfig:
    """Reads a promise of the command line, as `changed=0.02`; raises ValueError where it is none."""
    kind, _, amount = given.partition("=")
    if kind not in KINDS:
        raise ValueError(f"no promise '{given}': write one of {', '.join(f'{name}=0.02' for name in KINDS)}")
    try:
        return PromiseConfig(**{kind: float(amount)})
    except ValueError as error:
        raise ValueError(f"no promise '{given}': {error}") from None
