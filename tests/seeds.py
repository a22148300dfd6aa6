"""Where the seeds of random models and data come from, so that all of them can be moved at once."""

import os

OFFSET = int(os.environ.get("MABPRUNE_TEST_SEED", "0"))


def moved(seed: int) -> int:
    """A seed of a random tiny model or of random test data, plus MABPRUNE_TEST_SEED.

    What a test claims must hold for any of them. Seeds that are what a test is about stay as they are.
    """
    return seed + OFFSET
