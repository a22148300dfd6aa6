"""Training of a pruned model through updates of low rank, which leave a plain model behind."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import PreTrainedModel

from hf_mabprune.architectures import architecture_of


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

    paths = [path for site in architecture_of(small).sites(small) for path in site.linears()]
    trained: Any = get_peft_model(small, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=paths))
    try:
        yield trained
    except BaseException:
        trained.unload()
        raise
    trained.merge_and_unload()
