"""The `mabprune` commands; scripts and `python -m hf_mabprune` call the same functions."""

from hf_mabprune.cli.commands import main

__all__ = ["main"]
