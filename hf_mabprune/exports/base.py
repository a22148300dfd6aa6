"""The contract of an export: a model in memory in, files of another program's format out, which are read back.

An export says which packages it needs and which models it cannot take, before anything is written; and it compares
what it wrote with the model, in the program that is to run it.
"""

from abc import ABC, abstractmethod
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

from transformers import PreTrainedModel

from hf_mabprune.checkpoints.load import Processor
from hf_mabprune.registry import Registry

EXPORTS: Registry[type["Export"]] = Registry("export", "hf_mabprune.exports")


class Export(ABC):
    """A destination.

    Attributes:
        modules: What must be installed, by the names that Python imports.
        remedy: Command that installs it.
        tolerance: Largest difference of two outputs that is rounding.
    """

    modules: ClassVar[tuple[str, ...]] = ()
    remedy: ClassVar[str] = ""
    tolerance: ClassVar[float] = 1e-4

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
        """Reads what was written, and gives the largest absolute difference of its outputs from the model's; nan where
        one of them is."""
