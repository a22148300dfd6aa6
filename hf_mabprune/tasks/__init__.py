"""Kinds of tasks, one file each; see `base.py` for the contract."""
