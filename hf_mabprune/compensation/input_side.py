"""The other side of a site: the projections that make its columns, refitted to what the pruned model gives them.

Gate and up of a gated FFN, queries, keys and values of an attention, gave y = W s + b for the states s of the dense
model; in the pruned one s differs by the errors of the layers below. Their rows that stay are fitted to give y from
that, before any activation function, where they are linear.
Symbols: D rows that stay of a projection, C inputs.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hf_mabprune.architectures import Projection, Site, architecture_of
from hf_mabprune.architectures.projections import cuts
from hf_mabprune.architectures.sites import part_at
from hf_mabprune.arms import Ints
from hf_mabprune.compensation.base import Compensation, Refused, Regression
from hf_mabprune.compensation.refit_cache import Values
from hf_mabprune.compensation.side_by_side import SideBySide


class InputSide:
    """The projections that make a site's columns, under way.

    What they came with is not kept: the dense model has it. What they got is in the pruned model. Experts have none
    here: their inputs depend on which of them stay.

    Args:
        dense, small: The dense model and the pruned one.
        site: Site of the dense model.
        units: Units that stay, sorted.
        renamed: Says how a module of the dense model is called in the pruned one.
    """

    def __init__(
        self, dense: PreTrainedModel, small: PreTrainedModel, site: Site, units: Ints, renamed: Callable[[str], str]
    ) -> None:
        self.site, kept = site, made_by(dense, site, units)
        self.paths, self.rows = list(kept), list(kept.values())
        self.dense, self.small, self.renamed = dense, small, renamed

    @property
    def before(self) -> list[Values]:
        """Weights and biases as surgery left them: rows of the dense model's."""
        dense = (_at(self.dense, path).values() for path in self.paths)
        return [(weight[rows], bias[rows]) for (weight, bias), rows in zip(dense, self.rows, strict=True)]

    def values(self) -> list[Values]:
        """Copies weights and biases as they are now."""
        return [projection.values() for projection in self.projections]

    @property
    def projections(self) -> list[Projection]:
        """The pruned model's, as they are now: weights that are brought in have other memory each time."""
        return [_at(self.small, self.renamed(path)) for path in self.paths]

    def refit(self, method: Compensation, below: SideBySide, weights: Iterator[torch.Tensor | float] | None) -> None:
        """Puts new weights and biases in, where anything below has changed what flows in.

        Args:
            method: How they are fitted.
            below: Both models.
            weights: Those of `Regression.of_pairs`.

        Raises:
            Refused: If what flows in is not finite; nothing is changed then.
        """
        if not self.paths:
            return
        both = Regression.of_pairs(below.rows(self.site, self.paths, self.rows), weights)
        if not (both.xx.isfinite().all() and both.yx.isfinite().all()):
            raise Refused("what flows into it on calibration data is not finite")
        if not below.moved:
            return
        start, after = 0, []
        for projection in self.projections:
            weight, bias = projection.float64()
            part = slice(start, start := start + len(weight))
            own = both.of(part)
            biased = projection.bias is not None
            new = method.fit(weight, *(own.centred() if biased else (own.xx, own.yx)), 1)
            after.append((new, own.y - new @ own.x if biased else bias))
        self.put(after)

    def put(self, values: Sequence[Values]) -> None:
        """Puts weights and biases into the pruned model."""
        for projection, (weight, bias) in zip(self.projections, values, strict=True):
            projection.write(weight)
            if projection.bias is not None:
                projection.write_bias(bias)


def made_by(dense: PreTrainedModel, site: Site, units: Ints) -> dict[str, torch.Tensor]:
    """Finds the projections that make a site's columns and belong to no other site: path of each -> rows that stay.

    Args:
        dense: The dense model.
        site: A site of it.
        units: Units that stay, sorted.
    """
    if site.kind == "expert" or site.expert is not None:
        return {}
    elsewhere = {site.prefix + rows.path for rows in site.spec.rows if rows.elsewhere}
    elsewhere |= {other.name for other in architecture_of(dense).sites(dense)}  # which are refitted as projections
    found: dict[str, torch.Tensor] = {}
    for cut in cuts(dense.base_model, site, units):
        path = cut.path.removesuffix(".weight")
        if isinstance(part_at(dense.base_model, path), nn.Linear | Conv1D) and path not in elsewhere:
            found[path] = torch.as_tensor(cut.index)
    return found


def _at(model: PreTrainedModel, path: str) -> Projection:
    """Gives the weights of a module as a map from states to columns."""
    module: Any = part_at(model.base_model, path)
    return Projection((module.weight.T if isinstance(module, Conv1D) else module.weight,), module, model.device)
