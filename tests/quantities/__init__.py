"""Tests of what targets are of."""
