"""Recovery: trains what a cut leaves, so that it says again what the dense model says."""
