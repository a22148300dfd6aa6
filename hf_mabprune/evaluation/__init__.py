"""Evaluation: what a model is worth beside the dense one, measured on data that nothing else has read."""
