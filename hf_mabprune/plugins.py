"""Loads code from elsewhere that registers components: plugins of installed packages, and those that a user names.

A plugin is a module that registers what it defines with the decorators of the registries. What is installed and what
the user types decide which are loaded; nothing found in a checkpoint or a config does.
"""

import importlib
import logging
import sys
from importlib.metadata import entry_points
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

from hf_mabprune.errors import in_words

GROUP = "hf_mabprune.plugins"  # of the entry points by which installed packages name their plugins
_looked_up = False


def load_plugin(name: str) -> None:
    """Imports a plugin; does nothing where it has been imported.

    Args:
        name: Path of a .py file, or dotted name of a module that Python finds.

    Raises:
        ValueError: If it cannot be imported; one line that names it and says why.
    """
    try:
        if name.endswith(".py"):
            _import_file(Path(name).expanduser().resolve())
        else:
            importlib.import_module(name)
    except FileNotFoundError as error:
        missing = error.filename == str(Path(name).expanduser().resolve())
        says = "there is no such file" if missing else f"FileNotFoundError: {in_words(error)}"
        raise ValueError(f"plugin {name} cannot be imported: {says}") from error
    except Exception as error:  # a plugin may raise anything
        raise ValueError(f"plugin {name} cannot be imported: {type(error).__name__}: {error}") from error


def load_installed() -> None:
    """Imports the plugins of installed packages, once.

    One that cannot be imported is left out, and a line on the log says so: nobody has asked for it yet, and a program
    that only imports this package must not stop for it.
    """
    global _looked_up
    if _looked_up:
        return
    _looked_up = True  # at once, for plugins look names up while they are imported
    for entry in entry_points(group=GROUP):
        try:
            entry.load()
        except Exception as error:
            logging.getLogger(__name__).warning(
                "hf_mabprune: plugin '%s' of package %s cannot be imported, so what it registers is missing: %s: %s",
                entry.name,
                entry.dist.name if entry.dist else "unknown",
                type(error).__name__,
                error,
            )


def _import_file(path: Path) -> None:
    """Imports a file as a module whose name follows from its path, so that it hides no other."""
    name = str(path).replace(".", "_")  # a dot would make it part of a package
    spec = spec_from_file_location(name, path)
    if name in sys.modules or spec is None or spec.loader is None:
        return
    module = sys.modules[name] = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
