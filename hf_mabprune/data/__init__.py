"""Data sets: splits that share no rows, and their columns."""
