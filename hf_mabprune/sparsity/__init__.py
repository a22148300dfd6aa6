"""Sparsity: zeros in single weights, in the connections of units or in whole units, without another shape anywhere.

Nothing here makes a file smaller or a dense model faster; what does is surgery. Zeros are what compressed formats,
sparse kernels and studies of pruning ask for.
"""

from hf_mabprune.sparsity.schedules import Step, StepFigures, iterative, one_shot, run_schedule
from hf_mabprune.sparsity.sparsity import Sparsity, sparsify

__all__ = ["Sparsity", "Step", "StepFigures", "iterative", "one_shot", "run_schedule", "sparsify"]
