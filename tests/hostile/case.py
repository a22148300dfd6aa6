"""What a hostile case is: a folder that is harmed, commands that are run in it, and what may come of them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Expected = Literal["refused", "equal", "warned", "passes", "any"]
SILENT = "longest silence:"  # before its seconds, in what a watched run printed
OWN = ("out", "out.state", "out.logs")
EXPECTED: dict[Expected, str] = {
    "refused": "it must not pass",
    "equal": "it may pass, with the result of the unharmed run",
    "warned": "it may pass, with the result of the unharmed run, or with another one and a warning",
    "passes": "it must pass; what comes of it is for the checks of the case",
    "any": "it may pass or not; what comes of it is for the checks of the case",
}


@dataclass(frozen=True)
class Done:
    """What a command left behind.

    Attributes:
        folder: Folder of the case, in which the command ran.
        code: Exit code; negative for a signal.
        stdout, stderr: What it printed.
        seconds: How long it took.
        memory: Most bytes it had, beyond what a command has that does nothing.
        published: Repository -> path -> content, of what is on the Hub after it.
        unlocked: Requests of an upload during which the lock of the output was free.
    """

    folder: Path
    code: int
    stdout: str
    stderr: str
    seconds: float
    memory: int
    published: dict[str, dict[str, bytes]] = field(default_factory=dict)
    unlocked: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """All that was printed."""
        return self.stdout + self.stderr


Check = Callable[[Done], str | None]


@dataclass(frozen=True)
class Step:
    """One command of a case.

    Attributes:
        command: Words after `mabprune`; none for a program.
        program: Python source that calls prune(), instead of a command.
        expects: What may come of it.
        reference: Name of the unharmed result in the world that a passing one must be equal to.
        output: Folder that its result is in.
        checks: Further checks, which give what is wrong, or None.
        environment: Variables beside the usual ones; {folder} stands for the folder of the case.
        others: Words of the other processes of the same launch.
        faults: Requests to the Hub that fail: pattern, status, or 0 for a dropped connection.
    """

    command: tuple[str, ...] = ()
    program: str = ""
    expects: Expected = "equal"
    reference: str = "run"
    output: str = "out"
    checks: tuple[Check, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    others: tuple[tuple[str, ...], ...] = ()
    faults: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Case:
    """One case.

    Attributes:
        name: What is wrong, in a few words.
        steps: Commands, one after the other.
        harm: Changes the folder before the first one.
        needs: What the folder has of the world.
        own: Paths that the commands may make or change.
        early: Whether a refusal must come before the first round of a search.
        secrets: Texts that must be nowhere in what is printed or written.
        forbidden: Texts that no message may have.
        umask: Of the commands.
        plain_user: Whether they run without the rights of root over files.
        mounts: (source, target, options) of bind mounts that only the commands see; no source: an empty small disk.
        locked: A file that another process holds a lock on meanwhile.
        figures: Whether the run draws its figures, which take a third of its time.
        leaves: Whether a refusal may leave an output behind, as one that could not be pushed.
        adds: Folders that the commands may add something to.
        slow: Seconds that every layer takes more, in a run that writes to a terminal.
    """

    name: str
    steps: tuple[Step, ...]
    harm: Callable[[Path], object] = lambda folder: None
    needs: tuple[str, ...] = ("models/bert", "data", "run.yaml")
    own: tuple[str, ...] = OWN
    early: bool = False
    secrets: tuple[str, ...] = ()
    forbidden: tuple[str, ...] = ()
    umask: int = 0o022
    plain_user: bool = False
    mounts: tuple[tuple[str, str, str], ...] = ()
    locked: str = ""
    figures: bool = False
    leaves: bool = False
    adds: tuple[str, ...] = ()
    slow: float = 0.0


def prune(*words: str, config: str = "run.yaml") -> tuple[str, ...]:
    """Gives the words of a run."""
    return ("prune", "--config", config, *words)


def one(name: str, command: tuple[str, ...], expects: Expected = "equal", **options: object) -> Case:
    """Makes a case of one command; options of the step and of the case may be mixed."""
    of_step = {key: options.pop(key) for key in list(options) if key in Step.__dataclass_fields__}
    return Case(name, (Step(command, expects=expects, **of_step),), **options)  # type: ignore[arg-type]
