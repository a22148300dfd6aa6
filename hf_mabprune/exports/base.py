"""The contract of an export: a model in memory in, files of another program's format out, which are read back.

An export says which packages it needs and which models it cannot take, before anything is written; and it compares
what it wrote with the model, in the program that is to run it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from transformers import PreTrainedModel

from hf_mabprune.checkpoints.processors import Processor
from hf_mabprune.registry import Registry

Runner = Callable[..., Any]  # inputs by name -> outputs, as those of the model
EXPORTS: Registry[type["Export"]] = Registry("export", "hf_mabprune.exports")


class Export(ABC):
    """A destination.

    Attributes:
        modules: What must be installed, by the names that Python imports.
        remedy: Command that installs it.
        tolerance: Largest difference of two outputs that is rounding.
        relative: Whether differences are fractions of the outputs' size.
        after: Name of the export whose step comes before, as that to float32 comes before that to integers; none where
            this is the first.
    """

    modules: ClassVar[tuple[str, ...]] = ()
    remedy: ClassVar[str] = ""
    tolerance: ClassVar[float] = 1e-4
    relative: ClassVar[bool] = False
    after: ClassVar[str] = ""

    @classmethod
    def check_installed(cls, name: str) -> None:
        """Refuses to begin where something is not installed, with a ValueError that says how to install it.

        Args:
            name: Name of the export.
        """
        if missing := [module for module in cls.modules if find_spec(module) is None]:
            raise ValueError(f"export {name} needs {', '.join(missing)}, not installed here: {cls.remedy}")

    def check(self, model: PreTrainedModel) -> None:  # noqa: B027
        """Refuses a model that the destination cannot take, with a ValueError; none, if it does not say so."""

    @abstractmethod
    def write(self, model: PreTrainedModel, processor: Processor, folder: Path) -> None:
        """Writes a model.

        Args:
            model: Model in evaluation mode, on the CPU, float32.
            processor: Its tokenizer or processor; None where it has none.
            folder: Empty folder.
        """

    @abstractmethod
    def difference(self, model: PreTrainedModel, folder: Path) -> float:
        """Reads what was written, and gives the largest difference of its outputs from the model's, absolute or as a
        fraction of their size; nan where one of them is."""

    def runner(self, folder: Path) -> Runner:
        """Gives what runs an exported model here, to measure it: called as the model is, on the CPU.

        Raises:
            ValueError: If nothing here does.
        """
        raise ValueError(f"{type(self).__name__} cannot be measured: nothing here runs what it writes")
