"""The files of a run that goes on, which lie beside its output folder."""

import re
from dataclasses import dataclass
from pathlib import Path

from hf_mabprune.runtime.files import MARK, PARTIAL

TRAINING = re.compile(rf"(training_[0-9a-f]{{16}}\.safetensors)({re.escape(PARTIAL)})?$")


@dataclass(frozen=True)
class RunPaths:
    """Where a run that goes on has its files. `artifacts.run_folder.RunFolder` spells them.

    Attributes:
        output: Folder that the run leaves behind.
        written: Settings in that folder, there once the run has finished.
        logs: Folder of trackers that write files, where the settings name no other.
        state: Folder of the next four and of trainings, there while the run goes on.
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
        saved = [path.name for path in (self.search, self.config, *self.trainings())]
        return [*saved, *(f"{name}{PARTIAL}" for name in saved), self.unpublished.name, self.lock.name, MARK]

    def training(self, name: str) -> Path:
        """Gives the file of a training.

        Args:
            name: Hash of what it begins with.
        """
        return self.state / f"training_{name[:16]}.safetensors"

    def trainings(self) -> list[Path]:
        """Finds the files of all trainings, those that were not written whole by the names that they would have."""
        names = (TRAINING.match(path.name) for path in self.state.glob("training_*"))
        return sorted({self.state / name[1] for name in names if name})

    @property
    def begun(self) -> bool:
        """Whether there is work that a run which goes on need not do again."""
        return any(path.exists() for path in (self.search, *self.trainings()))

    @property
    def unfinished(self) -> bool:
        """Whether something is left to go on with."""
        return self.begun or self.unpublished.exists()
