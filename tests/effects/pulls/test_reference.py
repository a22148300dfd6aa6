"""Reference pulls against their definition."""

import numpy as np
import pytest
import torch

from hf_mabprune.effects.masking import masked
from hf_mabprune.effects.pulls.reference import ReferencePulls
from tests.problems import problem


def test_a_pull_is_the_loss_with_the_arm_masked_minus_the_loss_without() -> None:
    model, task, batches, arms = problem("bert")
    arm = int(arms.of_kind("neuron")[1])  # neurons 16 to 31 of layer 0
    mask = torch.ones(48)
    mask[16:32] = 0
    inputs = {name: tensor for name, tensor in batches[0].items() if name != "labels"}
    with torch.no_grad():
        before = torch.nn.functional.cross_entropy(model(**inputs).logits, batches[0]["labels"])
        with masked(model, neuron_mask={0: mask}):
            after = torch.nn.functional.cross_entropy(model(**inputs).logits, batches[0]["labels"])
    reward = ReferencePulls(model, arms, task, batches, "loss").pull(np.array([arm]), np.array([0]))[0, 0]

    assert reward == pytest.approx(float(before - after), abs=1e-6)
