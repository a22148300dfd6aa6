"""Trains what stays, with the dense model as its dense."""
