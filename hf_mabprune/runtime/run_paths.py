"""The files of a run that goes on, which lie beside its output folder."""

from dataclasses import dataclass
from pathlib import Path

from hf_mabprune.runtime.files import MARK, PARTIAL


@dataclass(frozen=True)
class RunPaths:
    """Where a run that goes on has its files. `artifacts.run_folder.RunFolder` spells them.

    Attributes:
        output: Folder that the run leaves behind.
        written: Settings in that folder, there once the run has finished.
        logs: Folder of trackers that write files, where the settings name no other.
        state: Folder of the next four, there while the run goes on.
        lock: File that only one run can hold.
        config: Settings of the run.
        search: The search as it was saved last.
        unpublished: File that is there while the output is in place, and not yet where it shall be published.
    """

    output: Path
    written: Path
    logs: Path
    state: Path
    lock: Path
    config: Path
    search: Path
    unpublished: Path

    def names(self) -> list[str]:
        """Lists the names of everything that can be in the folder of the state."""
        saved = [path.name for path in (self.search, self.config)]
        return [*saved, *(f"{name}{PARTIAL}" for name in saved), self.unpublished.name, self.lock.name, MARK]

    @property
    def unfinished(self) -> bool:
        """Whether something is left to go on with."""
        return self.search.exists() or self.unpublished.exists()
