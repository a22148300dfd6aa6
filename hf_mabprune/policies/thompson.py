"""Thompson sampling."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from hf_mabprune.policies.base import POLICIES, Floats, Ints, Policy
from hf_mabprune.registry import option


@POLICIES.register("thompson")
@dataclass(kw_only=True)
class Thompson(Policy):
    """argmax_a of one draw from each arm's posterior.

    - gaussian, on raw rewards: m_a + s_a / sqrt(n_a + n_0) N(0, 1). The prior is worth n_0 = `prior_pulls` pulls with
      the mean M and variance V of the rewards of all living arms (M = 0, V = 1 before any):
      m_a = (sum_a + n_0 M) / (n_a + n_0), s_a^2 = (n_a var_a + n_0 V) / (n_a + n_0), var_a the variance of arm a's
      rewards around its mean. With n_0 -> 0 it is mean_a + s_a / sqrt(n_a) N(0, 1).
    - beta, on mapped rewards: Beta(1 + n_a u_a, 1 + n_a - n_a u_a), u_a = u(mean_a), u the map to [0, 1]; the prior is
      uniform.

    Several arms a round: the k largest draws, one an arm; fresh draws for each slot would repeat arms.

    Source: Thompson 1933; Agrawal & Goyal 2012, arXiv 1111.1797, and 2013, arXiv 1209.3353, section 3. The Gaussian
    prior (empirical Bayes) and the defaults are this project's.
    """

    posterior: Literal["gaussian", "beta"] = option("gaussian", "gaussian on raw rewards, or beta on mapped ones")
    prior_pulls: float = option(1.0, "how many pulls the gaussian prior is worth")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.posterior not in ("gaussian", "beta"):
            raise ValueError(f"posterior must be 'gaussian' or 'beta', got {self.posterior!r}")
        if not 0.0 < self.prior_pulls < np.inf:
            raise ValueError(f"prior_pulls must be finite and above 0, got {self.prior_pulls}")

    def gaussian(self) -> tuple[Floats, Floats]:
        """Mean [K] and standard deviation [K] of the Gaussian posteriors."""
        n, n_0, t = self.pulls, self.prior_pulls, self.total_pulls()
        prior_mean, prior_variance = 0.0, 1.0
        if t > 0:
            prior_mean = self.sums[self.alive].sum() / t
            prior_variance = max(0.0, self.square_sums[self.alive].sum() / t - prior_mean**2)
        own_squares = np.maximum(0.0, self.square_sums - n * self.means() ** 2)  # n_a var_a
        mean = (self.sums + n_0 * prior_mean) / (n + n_0)
        return mean, np.sqrt((own_squares + n_0 * prior_variance) / (n + n_0) / (n + n_0))

    def beta(self) -> tuple[Floats, Floats]:
        """The parameters [K] and [K] of the Beta posteriors."""
        successes = self.pulls * self.unit(self.means())
        return 1.0 + successes, 1.0 + self.pulls - successes

    def select(self, k: int) -> Ints:
        draws = self.rng.beta(*self.beta()) if self.posterior == "beta" else self.rng.normal(*self.gaussian())
        return self.largest(draws, k)
