"""The contract of a bandit policy: numbers in, numbers out, no model.

Symbols: K arms; k arms selected at a time; n_a (effective) pulls of arm a; t their sum over living arms; reward = how
safe it is to remove an arm, higher is safer. A pull of arm a on one mini-batch yields the mean and the second moment
of the per-example reward. A context is the set of arms already removed.

The textbook rules choose one arm a round. Here k different arms are chosen at once, which makes a round k plays whose
rewards arrive together: rules that sample draw without replacement (Gumbel-top-k, the first draw has exactly the
textbook probabilities), rules that take the best index take the k best. With k = 1 every rule is the textbook's.

Rules made for rewards in [0, 1] map them by u(x) = clip((x - low) / (high - low), 0, 1), low and high the 5th and 95th
percentile of the first reward of each arm in this context. The map is re-estimated at each update until rewards of
min(K alive, 256) different arms are in, then frozen. Statistics are kept raw and mapped on use, so that a provisional
map leaves nothing behind: u is applied to an arm's mean, which equals the mean of u unless some rewards are clipped.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from hf_mabprune.registry import Registry, option
from hf_mabprune.states import WHOLE, Entry, Generator, Values, read_state

POLICIES: Registry[type["Policy"]] = Registry("policy", "hf_mabprune.policies")

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Choose = Callable[[Floats], Bools]

MAP_ARMS = 256  # different arms whose rewards settle the map to [0, 1]


@dataclass(kw_only=True)
class Policy(ABC):
    """A seeded allocation of pulls over arms, vectorised over all of them.

    The state is a handful of arrays of length K, described in `STATE`, and the random generator. Arms that are already
    removed stay in the arrays, with their last statistics, and are never selected.

    Args:
        arms: K, the number of arms.
        seed: Of the policy's own random generator.
        memory: Fraction of each arm's effective pulls that survives a change of context, in [0, 1].
        rank_by: What `scores()` ranks by.
    """

    STATE: ClassVar[Mapping[str, Entry]] = {
        "alive": Values(bool),
        "pulls": Values(float, low=0, high=WHOLE),
        "sums": Values(float),
        "square_sums": Values(float, low=0),
        "first_rewards": Values(float, nan=True),
        "low": Values(float, ()),
        "high": Values(float, ()),
        "frozen": Values(bool, ()),
    }

    arms: int
    seed: int = 0
    memory: float = option(0.5, "fraction of each arm's pulls that still counts after some arms were removed")
    rank_by: Literal["mean", "cumulative"] = option(
        "mean", "what arms are ranked by for removal: mean reward, or the sum of rewards (favours arms pulled often)"
    )

    def __post_init__(self) -> None:
        if self.arms < 1:
            raise ValueError(f"arms must be at least 1, got {self.arms}")
        if not 0.0 <= self.memory <= 1.0:
            raise ValueError(f"memory must be in [0, 1], got {self.memory}")
        if self.rank_by not in ("mean", "cumulative"):
            raise ValueError(f"rank_by must be 'mean' or 'cumulative', got {self.rank_by!r}")
        self.rng = np.random.default_rng(self.seed)
        self.alive = np.ones(self.arms, dtype=bool)  # [K], still a candidate
        self.pulls = np.zeros(self.arms)  # [K], effective number of pulls n_a
        self.sums = np.zeros(self.arms)  # [K], discounted sum of per-batch mean rewards
        self.square_sums = np.zeros(self.arms)  # [K], discounted sum of their squares
        self.first_rewards = np.full(self.arms, np.nan)  # [K], first one in this context, NaN where there is none
        self.low, self.high, self.frozen = 0.0, 0.0, False  # the map to [0, 1]
        self.choose: Choose | None = None  # of the round under way, as its `batches` and `budget`
        self.batches = self.budget = 0

    @abstractmethod
    def select(self, k: int) -> Ints:
        """Chooses different living arms to pull next.

        Returns:
            [<= k], at most min(k, number alive) arms. Their order means nothing. None: the round is decided.

        Raises:
            ValueError: If k < 1.
        """

    def update(self, arms: Ints, values: Floats, controls: Floats | None = None, batches: Ints | None = None) -> None:
        """Takes in the rewards of pulled arms, selected or not. An arm may occur several times.

        Args:
            arms: [n], arm of each pull.
            values: [n, 2], mean and second moment of the per-example reward of each pull.
            controls: [n], a cheap estimate of the same quantity, where there is one.
            batches: [n], the mini-batch that each pull was made on.

        Raises:
            ValueError: For shapes that do not fit, values that are not finite, or an arm unknown or already removed.
                Nothing is taken in then.
        """
        arms, values = np.asarray(arms, dtype=np.int64), np.asarray(values, dtype=np.float64)
        if arms.ndim != 1 or values.shape != (len(arms), 2):
            raise ValueError(f"values must be [n, 2] for arms [n], got {values.shape} for {arms.shape}")
        if not np.isfinite(values).all():
            bad = arms[~np.isfinite(values).all(axis=1)]
            raise ValueError(f"values must be finite, got others for arms {bad[:5].tolist()}")
        if ((arms < 0) | (arms >= self.arms)).any():
            raise ValueError(f"arms must be in [0, {self.arms}), got {arms.min()} to {arms.max()}")
        if not self.alive[arms].all():
            raise ValueError(f"arms {arms[~self.alive[arms]][:5].tolist()} are already removed")
        self._take_in(arms, values[:, 0], controls)

    def begin(self, choose: Choose, batches: int, known: Floats | None = None, budget: int | None = None) -> None:
        """A round begins, in the context of the last `new_context`. Rules that aim at a set make use of it.

        Args:
            choose: From scores, [K], to the arms that would be left, [K], if the round ended with them.
            batches: Different mini-batches that there are.
            known: [K], mean over all of them of the controls that `update` will get; None where there are none.
            budget: Pulls that the round has at most.
        """
        self.choose, self.batches, self.budget = choose, batches, budget or 0

    def _take_in(self, arms: Ints, rewards: Floats, controls: Floats | None = None) -> None:
        """Adds checked rewards [n] to the statistics; rules with statistics of their own extend it."""
        np.add.at(self.pulls, arms, 1.0)
        np.add.at(self.sums, arms, rewards)
        np.add.at(self.square_sums, arms, rewards**2)
        different, first = np.unique(arms, return_index=True)
        new = np.isnan(self.first_rewards[different])
        self.first_rewards[different[new]] = rewards[first[new]]
        if not self.frozen:
            self._fit_map()

    def _fit_map(self) -> None:
        seen = self.first_rewards[self.alive]
        seen = seen[~np.isnan(seen)]
        if len(seen) > 0 and seen.min() < seen.max():  # else the former map stands
            self.low, self.high = map(float, np.percentile(seen, [5, 95]))
        self.frozen = len(seen) >= min(self.number_alive(), MAP_ARMS)

    def new_context(self, kept: Bools) -> None:
        """Some arms were removed: they are dead from now on, and what is known of the others counts less.

        Args:
            kept: [K], which arms are still there. An arm once removed stays so whatever `kept` says.

        Raises:
            ValueError: If `kept` is not a boolean array [K].
        """
        kept = np.asarray(kept)
        if kept.shape != (self.arms,) or kept.dtype != bool:
            raise ValueError(f"kept must be a boolean array [{self.arms}], got {kept.dtype} {list(kept.shape)}")
        self.alive &= kept
        self._discount()
        self.first_rewards[:] = np.nan
        self.frozen = False

    def _discount(self) -> None:
        """Scales the statistics of living arms by `memory`; rules with statistics of their own extend it."""
        for sums in (self.pulls, self.sums, self.square_sums):
            sums[self.alive] *= self.memory

    def scores(self) -> Floats:
        """[K], the ranking for removal, higher = remove first: raw mean (or cumulative) reward of each arm.

        An arm without (effective) pulls has -inf, so that nothing is removed on no statistics. Removed arms keep the
        score they were removed with.
        """
        pulled = self.pulls > 0
        scores = np.full(self.arms, -np.inf)
        scores[pulled] = self.sums[pulled] if self.rank_by == "cumulative" else self.means()[pulled]
        return scores

    def means(self) -> Floats:
        """[K], mean raw reward of each arm; the average of the living pulled arms' means where there is no pull."""
        pulled = self.pulls > 0
        means = np.divide(self.sums, self.pulls, out=np.zeros(self.arms), where=pulled)
        known = means[pulled & self.alive]
        means[~pulled] = known.mean() if len(known) else 0.0
        return means

    def unit(self, rewards: Floats) -> Floats:
        """The map u of raw rewards to [0, 1] described at the top; 0.5 as long as there is no range to map."""
        if self.high <= self.low:
            return np.full_like(rewards, 0.5)
        return np.clip((rewards - self.low) / (self.high - self.low), 0.0, 1.0)

    def number_alive(self) -> int:
        """How many arms are still candidates."""
        return int(np.count_nonzero(self.alive))

    def total_pulls(self) -> float:
        """t, the effective pulls of all living arms."""
        return float(self.pulls[self.alive].sum())

    def largest(self, index: Floats, k: int) -> Ints:
        """The `k` living arms (all, if fewer live) with the largest `index` [K], ties in a seeded random order.

        Raises:
            ValueError: If k < 1.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        living = np.flatnonzero(self.alive)
        if k >= len(living):
            return living
        values = index[living]
        # Only the k-th value is taken from the partition: the order within it differs between machines.
        threshold = np.partition(values, -k)[-k]
        above = living[values > threshold]
        tied = self.rng.permutation(living[values == threshold])
        return np.sort(np.concatenate([above, tied[: k - len(above)]]))

    def draw(self, log_weights: Floats, k: int) -> Ints:
        """`k` different living arms, one after another with p ~ exp(log_weights [K]) among those left.

        Source: Gumbel-top-k, Kool et al. 2019, arXiv 1903.06059, section 3.
        """
        return self.largest(log_weights + self.rng.gumbel(size=self.arms), k)

    def softmax(self, log_weights: Floats) -> Floats:
        """[K], exp(log_weights) normalised over living arms; 0 for removed ones."""
        probabilities = np.zeros(self.arms)
        if self.alive.any():
            living = log_weights[self.alive]
            exponentials = np.exp(living - living.max())
            probabilities[self.alive] = exponentials / exponentials.sum()
        return probabilities

    def state_dict(self) -> dict[str, Any]:
        """A copy of the state without the options: arrays, numbers, and under `rng` a dict that JSON can hold."""
        state = {name: getattr(self, name) for name in self.STATE}
        copies = {name: value.copy() if isinstance(value, np.ndarray) else value for name, value in state.items()}
        return {**copies, "rng": self.rng.bit_generator.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a state of a policy with the same options, as if there had been no interruption.

        Raises:
            ValueError: If the state has other entries or another number of arms, or one that no pulls lead to. Nothing
                is taken in then.
        """
        entries = {**self.STATE, "rng": Generator()}
        restored = read_state(type(self).__name__, state, entries, {"K": self.arms})
        for wrong in self.contradictions(restored):
            raise ValueError(f"a state of {type(self).__name__} contradicts itself: {wrong}")
        self.rng.bit_generator.state = restored.pop("rng")
        for name, value in restored.items():
            setattr(self, name, value)

    def contradictions(self, state: dict[str, Any]) -> Iterator[str]:
        """Says what in a state cannot be, in a few words each, though every entry is as `STATE` describes it.

        Rules with entries of their own extend it.
        """
        without = state["pulls"] == 0
        if state["low"] > state["high"]:
            yield "low is above high"
        if state["sums"][without].any() or state["square_sums"][without].any():
            yield "rewards of arms without pulls"

    def check_pulls(self, alive: Bools, seen: Ints, pulls: Ints) -> None:
        """Checks, after a state was read, that it is about the pulls that were made.

        Args:
            alive: [K], arms that are still candidates.
            seen: [K], pulls in this context.
            pulls: [K], pulls in all contexts.

        Raises:
            ValueError: If it is about others.
        """
        slack = 1e-6 * (1 + pulls)  # of counts that were discounted several times
        if not np.array_equal(alive, self.alive):
            raise ValueError("the policy's arms are not those that are left")
        if ((self.pulls < seen - slack) | (self.pulls > pulls + slack)).any():
            raise ValueError("the policy's pulls are not those that were made")
