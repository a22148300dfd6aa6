"""Projections and cuts: how weights are read, written and cut, whatever kind of module holds them.

Nothing else in the package asks whether a module is a Linear, a Conv1D, a fused matrix or a stack of experts.
Symbols: D outputs and C columns (inputs) of a projection; E experts.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hf_mabprune.architectures.sites import GROUPS, UNITS, Rows, Site, part_at
from hf_mabprune.arms import Ints


@dataclass(frozen=True)
class Projection:
    """The map y = W h + b behind a site.

    Attributes:
        parts: Views of the weights, [D, C] in all, side by side: one, or one for each expert behind a router.
        module: Linear or Conv1D that holds them, which may be given a bias; None for experts.
        device: Where the model runs, which is not where weights lie that are brought in when a layer runs.
    """

    parts: tuple[torch.Tensor, ...]
    module: nn.Linear | Conv1D | None
    device: torch.device

    @property
    def weight(self) -> torch.Tensor:
        """W, [D, C]: a view of the model's own weights, but for experts side by side."""
        return (self.parts[0] if len(self.parts) == 1 else torch.cat(self.parts, 1)).to(self.device)

    @property
    def bias(self) -> torch.Tensor | None:
        """b, [D]; None where there is none."""
        return None if self.module is None or self.module.bias is None else self.module.bias.to(self.device)

    def values(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Copies W [D, C] and b [D]; zeros where there is no bias."""
        weight, bias = self.weight.detach().clone(), self.bias
        return weight, weight.new_zeros(len(weight)) if bias is None else bias.detach().clone()

    def float64(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Gives the same in float64."""
        weight, bias = self.weight.detach().double(), self.bias
        return weight, weight.new_zeros(len(weight)) if bias is None else bias.detach().double()

    @torch.no_grad()
    def write(self, weight: torch.Tensor) -> None:
        """Puts other weights, [D, C], in the place of those of the model."""
        for part, new in zip(self.parts, weight.split([part.shape[1] for part in self.parts], 1), strict=True):
            part.copy_(new)

    @torch.no_grad()
    def write_bias(self, bias: torch.Tensor | None) -> None:
        """Puts a bias, [D], into the module, whether or not it had one; None takes away the one that it has.

        Raises:
            ValueError: If the projection cannot have one.
        """
        if self.module is None:
            raise ValueError("a projection of experts takes no bias")
        if bias is None or self.module.bias is None:
            like = self.module.weight
            new = None if bias is None else nn.Parameter(bias.to(like), requires_grad=like.requires_grad)
            self.module.register_parameter("bias", new)
        else:
            self.module.bias.copy_(bias)


def projection_of(model: PreTrainedModel, site: Site) -> Projection:
    """Gives the projection of a site; that of experts behind a router is all of theirs, side by side.

    Raises:
        ValueError: If the module there is of no kind that can be cut.
    """
    base, device = model.base_model, model.device
    if site.kind == "expert":
        experts = part_at(base, f"{site.prefix}{site.spec.experts}")
        return Projection(tuple(_of_expert(experts, number) for number in range(site.units)), None, device)
    if site.expert is not None:
        return Projection((_of_expert(part_at(base, site.inside.removesuffix(".")), site.expert),), None, device)
    module = base.get_submodule(site.name)
    return Projection((matrix_of(module, site.name),), module, device)  # type: ignore[arg-type]


def matrix_of(module: nn.Module, name: str) -> torch.Tensor:
    """Gives the weights of a module, [D, C].

    Args:
        module: Linear or Conv1D.
        name: Its path, for the error.

    Raises:
        ValueError: If the module is of no kind that can be cut.
    """
    if isinstance(module, nn.Linear):
        return module.weight
    if isinstance(module, Conv1D):
        transposed: torch.Tensor = module.weight.T
        return transposed
    raise ValueError(f"{name} is a {type(module).__name__}, which cannot be cut: Linear and Conv1D can")


def _of_expert(experts: Any, number: int) -> torch.Tensor:
    """[D, C] of one expert's output projection."""
    weight: torch.Tensor = experts.down_proj[number]
    return weight.T if experts.is_transposed else weight


@dataclass(frozen=True)
class Cut:
    """Says which entries of one parameter stay.

    Attributes:
        path: Of the parameter, or of a buffer.
        dim: Dimension that is cut.
        index: [n], entries that stay.
        expert: Place along dimension 0 that alone is cut; None: all.
        source: Parameter that it is a copy of, where the model has none at `path` yet.
    """

    path: str
    dim: int
    index: Ints
    expert: int | None = None
    source: str | None = None


def cuts(base_model: nn.Module, site: Site, units: Ints) -> Iterator[Cut]:
    """Lists all that surgery cuts where a site keeps some units, the output projection first.

    What it yields is all that is ever known of how the weights of a site lie: surgery, costs and criteria follow it.

    Args:
        base_model: Model that the site is in.
        site: Site as the model has it now.
        units: [n], units that stay, sorted.
    """
    if site.kind != "expert":
        columns = spread(units, site.unit_size)
        output = part_at(base_model, site.inside + site.spec.output)
        if site.expert is not None:
            transposed = part_at(base_model, site.inside.removesuffix(".")).is_transposed
            yield Cut(site.inside + site.spec.output, 1 if transposed else 2, columns, site.expert)
        else:
            yield Cut(f"{site.name}.weight", 0 if isinstance(output, Conv1D) else 1, columns)
    for each in site.spec.rows:
        index = _row_index(each, site, units, _rows_a_unit(base_model, site, each))
        yield from _cuts_of_rows(base_model, site, each, index)


def rows_of(base_model: nn.Module, site: Site) -> Iterator[Cut]:
    """Lists the weights that make the columns of a site, block by block: all that is cut but its projection."""
    total = site.sizes(site.units)
    for each in site.spec.rows:
        size = _rows_a_unit(base_model, site, each)
        apart = [] if _alternate(each, site) else [total[part] * size for part in each.parts[:-1]]
        ends = np.cumsum(apart, dtype=np.int64)
        blocks = np.split(_row_index(each, site, np.arange(site.units), size), ends)
        for part, block in zip(each.parts, blocks, strict=False):
            if part == UNITS or not site.shared:
                made = _cuts_of_rows(base_model, site, each, block)
                yield from (cut for cut in made if not cut.path.endswith("bias"))


def _rows_a_unit(base_model: nn.Module, site: Site, which: Rows) -> int:
    """Counts the rows that a unit (or group) has in a block: 1 of a router, Dh, or what queries and keys are wide."""
    first = next(_cuts_of_rows(base_model, site, which, np.empty(0, dtype=np.int64)), None)
    if first is None or not site.units:
        return 0
    length, total = part_at(base_model, first.source or first.path).shape[first.dim], site.sizes(site.units)
    return int(length // sum(total[part] for part in which.parts))


def _cuts_of_rows(base_model: nn.Module, site: Site, which: Rows, index: Ints) -> Iterator[Cut]:
    if site.expert is not None:
        experts = part_at(base_model, site.inside.removesuffix("."))
        yield Cut(site.inside + which.path, 2 if experts.is_transposed else 1, index, site.expert)
        if part_at(base_model, f"{site.inside}{which.path}_bias") is not None:
            yield Cut(f"{site.inside}{which.path}_bias", 1, index, site.expert)
        return
    path = source = site.prefix + which.path
    part = part_at(base_model, path)
    if part is None and which.path in site.spec.copies:
        source = source_of(site, which.path)
        part = part_at(base_model, source)
    if part is None:
        return  # a projection that this config leaves out
    if isinstance(part, torch.Tensor):
        yield Cut(path, which.dim, index)
        return
    for name, _ in part.named_parameters(recurse=False):
        outputs = 1 if name == "weight" and isinstance(part, Conv1D | nn.Embedding) else 0
        copied = f"{source}.{name}" if source != path else None
        yield Cut(f"{path}.{name}", outputs, index, source=copied)


def source_of(site: Site, path: str) -> str:
    """Gives the path of the module that a layer's own `path` is a copy of: that of the first layer of its stack."""
    return f"{site.stack.layers}.0.{site.spec.copies[path]}"


def spread(units: Ints, size: int, step: int | None = None) -> Ints:
    """Lists the entries of units, `size` each, that begin every `step` entries (as many as `size`, if not said)."""
    return (units[:, None] * (size if step is None else step) + np.arange(size)).ravel()


def _row_index(which: Rows, site: Site, units: Ints, size: int) -> Ints:
    """Lists the rows that stay, of blocks of units and of groups, `size` each, one after the other or interleaved."""
    groups = site.groups_of(units)
    if _alternate(which, site) and set(which.parts) == {UNITS}:
        return spread(units, size * len(which.parts))
    if _alternate(which, site):  # whole groups go, and with them whole strides
        return spread(groups, sum(size * (site.group if part == UNITS else 1) for part in which.parts))
    kept, total = {UNITS: units, GROUPS: groups}, site.sizes(site.units)
    starts = np.cumsum([0, *(total[part] * size for part in which.parts)])
    return np.concatenate([start + spread(kept[part], size) for start, part in zip(starts, which.parts, strict=False)])


def _alternate(which: Rows, site: Site) -> bool:
    """Says whether blocks alternate, group by group or unit by unit; of one group alone, they follow one another."""
    return which.interleaved and (not site.shared or set(which.parts) == {UNITS})


def cut_parameters(
    base_model: nn.Module,
    kept: list[tuple[Site, Ints]],
    keep: Callable[[torch.Tensor], torch.Tensor] = lambda tensor: tensor,
) -> dict[str, torch.Tensor]:
    """Cuts the parameters and buffers of some sites, which hold all that share a parameter among them.

    Args:
        base_model: Model; it is not changed.
        kept: Sites, and the units that stay in each, [n].
        keep: Function that moves a tensor that was cut to where it is to lie.

    Returns:
        Path -> smaller parameter, or buffer.
    """
    by_path: dict[str, list[Cut]] = {}
    for site, units in kept:
        for each in cuts(base_model, site, units):
            by_path.setdefault(each.path, []).append(each)
    cut: dict[str, torch.Tensor] = {}
    for path, found in by_path.items():
        whole = part_at(base_model, found[0].source or path)
        smaller = keep(_cut(whole, found))
        cut[path] = nn.Parameter(smaller, whole.requires_grad) if isinstance(whole, nn.Parameter) else smaller
    return cut


def _cut(parameter: torch.Tensor, found: list[Cut]) -> torch.Tensor:
    """Cuts single experts first, then whole dimensions."""
    tensor = parameter.detach()
    ours: dict[int, list[Cut]] = {}
    for each in found:
        if each.expert is not None:
            ours.setdefault(each.expert, []).append(each)
    if ours:
        tensor = torch.stack([_along(part, ours.get(number, []), 1) for number, part in enumerate(tensor)])
    tensor = _along(tensor, [each for each in found if each.expert is None], 0)
    return tensor.contiguous()


def _along(tensor: torch.Tensor, found: list[Cut], gone: int) -> torch.Tensor:
    """Cuts one dimension after the other; `gone` dimensions in front are not there any more."""
    for each in found:
        tensor = tensor.index_select(each.dim - gone, torch.as_tensor(each.index, device=tensor.device))
    return tensor


def cut_shapes(base_model: nn.Module, kept: list[tuple[Site, Ints]]) -> dict[str, list[int]]:
    """Gives the shapes of what `cut_parameters` would give, path -> shape, without cutting."""
    shapes: dict[str, list[int]] = {}
    for site, units in kept:
        for each in cuts(base_model, site, units):
            shape = shapes.setdefault(each.path, list(part_at(base_model, each.source or each.path).shape))
            shape[each.dim] = len(each.index)
    return shapes
