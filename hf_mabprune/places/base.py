"""The contract of a place: a stored checkpoint in, how far what it says there is from what plain Auto classes say.

A place says what a user types to get there, what must be installed, and which checkpoints it cannot take; `tried` has
it do so, and tells what came of it.
"""

import tempfile
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar, Literal

from hf_mabprune.errors import in_words
from hf_mabprune.evaluation.figures import PlaceFigures
from hf_mabprune.places.subject import Subject
from hf_mabprune.registry import Registry

PLACES: Registry[type["Place"]] = Registry("place", "hf_mabprune.places")


class Untried(Exception):
    """Something that a place needs is not here; the message says what."""


@dataclass(frozen=True)
class Found:
    """What came of a place.

    Attributes:
        difference: Largest absolute difference from what plain Auto classes give in float32; nan where one of the two
            is. Of tokens: how many of them are others.
        of: What is compared.
        note: What else was measured, in words.
    """

    difference: float
    of: str = "logits"
    note: str = ""


class Place(ABC):
    """A place.

    Attributes:
        modules: What must be installed, by the names that Python imports.
        remedy: Command that installs it.
        at_end: Whether it is tried at the end of every run, since it takes a second or two.
        tolerance: Largest difference that is rounding.
    """

    modules: ClassVar[tuple[str, ...]] = ()
    remedy: ClassVar[str] = ""
    at_end: ClassVar[bool] = False
    tolerance: ClassVar[float] = 1e-4

    def cannot(self, subject: Subject) -> str:
        """Says why a checkpoint cannot be used here, ever; nothing where it can."""
        return ""

    @abstractmethod
    def recipe(self, subject: Subject) -> str:
        """Gives the lines or the command that a user types, for a checkpoint in the folder DIR."""

    @abstractmethod
    def reach(self, subject: Subject, work: Path) -> Found:
        """Loads the checkpoint as the recipe says, and compares what it gives.

        Args:
            subject: The checkpoint, with inputs and what plain Auto classes give for them.
            work: Empty folder, which is gone afterwards.

        Raises:
            Untried: If something is not here that cannot be asked for by `modules`.
        """


def tried(name: str, subject: Subject) -> PlaceFigures:
    """Tries a place, and says what came of it; whatever goes wrong there is said too, and does not end the program.

    Args:
        name: Name of a registered place.
        subject: The checkpoint.
    """
    place = PLACES.get(name)()
    recipe, why, found = place.recipe(subject), place.cannot(subject), None
    outcome: Literal["same", "other", "failed", "cannot", "untried"] = "cannot" if why else "untried"
    missing = [module for module in place.modules if find_spec(module) is None]
    start = time.perf_counter()
    if missing and not why:
        why = f"{', '.join(missing)} not installed: {place.remedy}"
    elif not why:
        try:
            with tempfile.TemporaryDirectory(prefix="mabprune-") as work:
                found = place.reach(subject, Path(work))
        except Untried as error:
            why = str(error)
        except Exception as error:  # of any library that a place uses
            outcome, why = "failed", in_words(error)
    if found is None:
        return PlaceFigures(name, recipe, outcome, why)
    outcome = "same" if found.difference <= place.tolerance else "other"  # nan is no small difference
    return PlaceFigures(
        name, recipe, outcome, found.note, found.difference, found.of, round(time.perf_counter() - start, 2)
    )


def tried_at_end(subject: Subject) -> list[PlaceFigures]:
    """Tries the places that are quick to try; of one that a file travels for, it says that it was not tried."""
    rows = [tried(name, subject) for name in PLACES.names() if PLACES.get(name).at_end]
    if subject.layout == "per_layer":
        place = "without_package"
        one, why = PLACES.get(place)(), "takes another process: scripts/places.py RUN --write"
        if not one.cannot(subject):
            rows.append(PlaceFigures(place, one.recipe(subject), "untried", why))
    return [row for row in rows if row.outcome != "cannot"]
