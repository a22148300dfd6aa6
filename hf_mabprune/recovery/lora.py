"""Training of a pruned model through updates of low rank, which leave a plain model behind."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hf_mabprune.architectures import architecture_of
from hf_mabprune.architectures.projections import cuts
from hf_mabprune.architectures.sites import part_at


@contextmanager
def low_rank(small: PreTrainedModel, rank: int) -> Iterator[Any]:
    """Gives a model with an update of low rank at every projection that pruning can cut; all else is frozen.

    A weight W [out, in] becomes W + 2 B A, with A [rank, in] and B [out, rank] trained and B zero at the start (Hu et
    al., arXiv 2106.09685, section 4.1; their scale alpha / r is 2 here). The updates are merged into the weights when
    the block ends well, and taken out otherwise.

    Args:
        small: The pruned model; the updates are put into it in place.
        rank: Rank of every update.
    """
    from peft import LoraConfig, get_peft_model

    paths = sorted(_paths(small))
    trained: Any = get_peft_model(small, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=paths))
    try:
        yield trained
    except BaseException:
        trained.unload()
        raise
    trained.merge_and_unload()


def _paths(small: PreTrainedModel) -> set[str]:
    """Paths of the modules that pruning can cut and that take such updates: all but experts, routers and tables."""
    base, found = small.base_model, set()
    for site in architecture_of(small).sites(small):
        for cut in cuts(base, site, np.arange(site.units)):
            path = cut.path.rpartition(".")[0]
            if isinstance(part_at(base, path), nn.Linear | Conv1D):
                found.add(path)
    return found
