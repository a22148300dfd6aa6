"""What a person sees while a search goes on: the stage with pulls a second and time left, and one line a round.

The numbers of a round are of the masked model on one calibration batch: another quantity than those of the report,
which are of the finished model on the test split; so the line says what they are.
"""

from dataclasses import dataclass

from hf_mabprune.config import PruneConfig
from hf_mabprune.progress import Work
from hf_mabprune.search.loop import Search
from hf_mabprune.search.result import Round


@dataclass(frozen=True)
class SearchProgress:
    """Says how a search goes.

    Attributes:
        search: The search that is under way.
        settings: Run settings, which say what comes after the search.
    """

    search: Search
    settings: PruneConfig

    def show(self, work: Work) -> None:
        """Brings the stage up to date, after every step."""
        search, rule = self.search, self.search.rule
        rounds, result = search.rounds, search.result
        if rule.measured:
            work.count(rule.measured, rule.planned, "passes for allocations, about")
            return
        last = f", KL {result.rounds[-1].kl:.4f} {self.measured_on()}" if result.rounds else ""
        work.count(int(result.pulls.sum()), note=f"round {min(search.number, rounds)}/{rounds}{last}")

    def line(self, done: Round) -> str:
        """Says in one line what a round did, and of what its numbers are."""
        refitted = self.search.rule.held_out_kl()
        known = "" if refitted is None else f"   refitted, on held-out calibration data: KL {refitted:.4g}"
        return (
            f"round {done.number}/{self.search.rounds}   {done.removed:,} arms removed   {self.measured_on()}: "
            f"KL {done.kl:.4f}, loss {done.loss:.3f} (dense {done.loss_before:.3f}){known}   {done.pulls:,} pulls   "
            f"{done.seconds:.0f} s"
        )

    def measured_on(self) -> str:
        """Says what the numbers of a round are measured on, and what has not been done to the model by then."""
        after = {"the refit": self.settings.compensation, "the training": self.settings.recovery}
        later = [name for name, settings in after.items() if settings]
        return "on one calibration batch" + (f", before {' and '.join(later)}" if later else "")
