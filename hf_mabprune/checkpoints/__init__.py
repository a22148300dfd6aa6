"""Checkpoints: written, read back, and the one file that travels with per-layer sizes."""
