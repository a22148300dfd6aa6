"""Cuts what goes out of the weights, with attributes and config."""
