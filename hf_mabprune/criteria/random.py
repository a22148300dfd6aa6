"""Random scores, a control."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from hf_mabprune.criteria.base import CRITERIA, Criterion, Evidence, Floats


@CRITERIA.register("random")
@dataclass(kw_only=True)
class Random(Criterion):
    """Uniform in (0, 1], from the seed of the evidence; arms compare whatever they cost."""

    per_cost: ClassVar[bool] = False

    def scores(self, evidence: Evidence) -> Floats:
        return 1.0 - np.random.default_rng(evidence.seed).random(len(evidence.arms))
