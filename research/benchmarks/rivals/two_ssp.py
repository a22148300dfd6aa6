"""2SSP (Sandri et al. 2025, arXiv 2501.17771): FFN neurons by what flows out of them, then whole attention blocks."""

from collections.abc import Sequence

import numpy as np
import torch
from transformers import PreTrainedModel

from hf_mabprune.architectures import Site
from hf_mabprune.arms import Ints
from hf_mabprune.effects.activations import watch_inputs
from hf_mabprune.effects.pulls.cost import Cost
from hf_mabprune.tasks.base import Task
from hf_mabprune.tasks.batch import Batch
from research.benchmarks.rivals.base import ALPHA, SAMPLE, Chosen, beginning, best, perplexity, split


def two_ssp(
    model: PreTrainedModel,
    task: Task,
    batches: Sequence[Batch],
    fraction: float,
    *,
    alpha: float = ALPHA,
    sample: int = SAMPLE,
) -> Chosen:
    """Chooses as 2SSP does; it has no compensation.

    Neurons: the L2 norm of a neuron's output over the positions of a sequence, mean over sequences; the largest stay,
    as many in every layer (section 3.1). Attention: the block whose removal leaves the lowest perplexity goes, again
    and again, with the neurons that went gone (section 3.2). The budget is split by equation 5.

    Args:
        model: The dense model, which is left as it is.
        task: Task that reads its outputs.
        batches: Calibration data.
        fraction: Part of the parameters outside embeddings that goes.
        alpha: Balance of the two stages.
        sample: Tokens that attention blocks are tried on.
    """
    attentions, ffns, going, width = split(model, fraction, alpha)
    norms: dict[str, torch.Tensor] = {}

    def see(site: Site, hidden: torch.Tensor, counted: torch.Tensor) -> None:
        norm = (hidden.float() * counted.unsqueeze(-1)).norm(dim=1).sum(0)
        norms[site.name] = norms.get(site.name, 0) + norm

    watch_inputs(model, task, batches, ffns, see)
    keep: dict[str, Ints] = {name: best(norm, width) for name, norm in norms.items()}
    trials, tokens = beginning(batches, sample), sum(batch.tokens for batch in batches)
    nothing = np.empty(0, dtype=np.int64)
    for _ in range(going):
        candidates = [attention.name for attention in attentions if attention.name not in keep]
        found = [perplexity(model, task, trials, {**keep, name: nothing}) for name in candidates]
        keep[candidates[int(np.argmin(found))]] = nothing
        tokens += len(candidates) * sum(batch.tokens for batch in trials)
    return Chosen(keep, cost=Cost(forward_tokens=tokens))
