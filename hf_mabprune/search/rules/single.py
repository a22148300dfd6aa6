"""Single: arms go by what was measured of each alone."""

from dataclasses import dataclass

from hf_mabprune.arms import LAYER
from hf_mabprune.search.rules.base import RULES, Removal, Rule
from hf_mabprune.selection.plan import Bools, Floats, Plan
from hf_mabprune.session import Session

PULLS_A_LAYER = 16.0


@RULES.register("single")
@dataclass(kw_only=True)
class Single(Rule):
    """The paper's rule (arXiv 2606.07615): the safest arms go, as if effects added up within a round.

    Later rounds see the context of what has gone, so more rounds make up for that.
    """

    def default_pulls(self, session: Session) -> float:
        """See `Rule.default_pulls`: layers are few, and each of them says much."""
        return PULLS_A_LAYER if LAYER in session.arms.kinds() else super().default_pulls(session)

    def choose(self, plan: Plan, rewards: Floats, kept: Bools, start: float, progress: float) -> Removal:
        """See `Rule.choose`."""
        return Removal(*plan.choose(rewards, kept, progress), rewards)
