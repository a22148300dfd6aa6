"""Places outside this environment, one file each, in the registry of `hf_mabprune.places`; and the table of all."""

import importlib
import pkgutil

from hf_mabprune.places import PLACES


def place_names() -> list[str]:
    """Lists all places, those outside among them, once their modules are imported."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    return PLACES.names()
