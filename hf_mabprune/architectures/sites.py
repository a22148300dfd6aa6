"""Sites: the places of a model where units can be cut out, as a family declares them and as a model has them.

A site is the input of one output projection: F columns of an FFN's, H * Dh columns of an attention's, F of one
expert's; or the experts behind one router; or a whole layer, which is its own and only unit. Masking a column equals
removing it together with the rows that produce it.
Symbols: F FFN neurons; H query heads; G key-value heads; Dh head size; E experts.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import nn
from transformers import PreTrainedConfig

from hf_mabprune.arms import LAYER, Ints, KeepIndices

UNITS, GROUPS, COLUMNS, PER_GROUP = "units", "groups", "columns", "per_group"
Sizes = Mapping[str, str | bool]  # name -> which size it holds (one of the above), or a constant


def _always(config: PreTrainedConfig) -> bool:
    return True


@dataclass(frozen=True)
class Rows:
    """Says which rows of a module, or of a bare parameter, go with the units of a site, as many with each.

    Attributes:
        path: Module or parameter, relative to the layer; to the module of experts for neurons of an expert.
        parts: What its rows hold, block after block: of all units, or of all groups.
        interleaved: Whether the blocks alternate group by group (unit by unit, where all are of units), and do not
            follow one another.
        dim: Dimension of a bare parameter, the first where it is left out; of a module it is that of its outputs.
        elsewhere: Whether its inputs are not those of the others alone: a decoder's of an encoder.
    """

    path: str
    parts: tuple[str, ...] = (UNITS,)
    interleaved: bool = False
    dim: int = 0
    elsewhere: bool = False


def rows(*paths: str) -> tuple[Rows, ...]:
    """Declares modules that have one block of rows a unit."""
    return tuple(Rows(path) for path in paths)


@dataclass(frozen=True, eq=False)
class SiteSpec:
    """Declares one kind of site inside the layers of a stack; paths are relative to the layer.

    Attributes:
        kind: `neuron`, `head` or `expert`.
        output: Projection whose input columns are the units; for `expert`, the router.
        rows: Whatever else goes with them; what a config leaves out is skipped.
        units: Config field that counts the units, in the family's own name; empty where there is none.
        groups: Config field that counts the groups of units that can only go together, each with the rows that they
            share; where there is one group, its rows stay and its units go one by one.
        experts: Module of 3-D parameters, an expert each: for neurons, the one that `output` and `rows` are in (one
            site for each expert); for `expert`, the one that the router sends to.
        block: Largest module whose output (or the first of its outputs) is that of the projection; the projection
            itself when left out.
        stream: Module whose input the output is added to; where it is left out, no refit makes up for what is there.
        norm: Norm without a mean between output and sum.
        feeds: Modules outside the block that do nothing but feed it.
        before: Modules of the layer that run before and that the site cannot change.
        attributes: Module path -> attribute -> which size it holds.
        settings: Module path -> field that its forward reads off the config -> which size it holds.
        arguments: Module path -> keyword argument with one entry a unit along dimension 1 -> whether to select those
            that stay, or else to pass none.
        copies: Module that every layer gets for itself -> where the first layer has it.
        empties: Modules that all that is cut lies in -> how many outputs each has, which take the place of what it
            does where no unit stays: first the bias of its projection, or nothing of width 0 for the next module, then
            None. Where it is left out, some units always stay.
        fixed: Config field -> value with which a stock config says sizes as they are, where units go.
        when: Whether units of such a site can be cut out of what a config makes, without a difference.
        reason: Why not, where they cannot.
    """

    kind: str
    output: str
    rows: tuple[Rows, ...]
    units: str
    groups: str | None = None
    experts: str | None = None
    block: str | None = None
    stream: str = ""
    norm: str = ""
    feeds: tuple[str, ...] = ()
    before: tuple[str, ...] = ()
    attributes: Mapping[str, Sizes] = field(default_factory=dict)
    settings: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    arguments: Mapping[str, Mapping[str, bool]] = field(default_factory=dict)
    copies: Mapping[str, str] = field(default_factory=dict)
    empties: Mapping[str, int] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    when: Callable[[PreTrainedConfig], bool] = _always
    reason: str = ""


def grouped_heads(attention: str, output: str = "o_proj", stream: str = "input_layernorm", **more: Any) -> SiteSpec:
    """Declares the heads of an attention as Llama and most decoders after it have it, with grouped keys and values.

    Args:
        attention: Module with `q_proj`, `k_proj`, `v_proj`.
        output: Its output projection.
        stream: As that of `SiteSpec`.
        more: Other attributes of `SiteSpec`.
    """
    spec = SiteSpec(
        "head",
        f"{attention}.{output}",
        (
            Rows(f"{attention}.q_proj"),
            Rows(f"{attention}.k_proj", (GROUPS,)),
            Rows(f"{attention}.v_proj", (GROUPS,)),
        ),
        units="num_attention_heads",
        groups="num_key_value_heads",
        block=attention,
        stream=stream,
        attributes={attention: {"num_key_value_groups": PER_GROUP}},
        empties={attention: 2},
    )
    return replace(spec, **more)


def plain_heads(attention: str, output: str, units: str = "num_attention_heads", **more: Any) -> SiteSpec:
    """Declares the heads of an attention as BART and towers after it have it, each with keys and values of its own.

    Args:
        attention: Module with `q_proj`, `k_proj`, `v_proj`.
        output: Its output projection.
        units: As that of `SiteSpec`.
        more: Other attributes of `SiteSpec`.
    """
    made = rows(f"{attention}.q_proj", f"{attention}.k_proj", f"{attention}.v_proj")
    spec = SiteSpec(
        "head",
        f"{attention}.{output}",
        made,
        units=units,
        block=attention,
        attributes={attention: {"num_heads": UNITS}},
    )
    return replace(spec, **more)


def gated_ffn(stream: str = "post_attention_layernorm", **more: Any) -> SiteSpec:
    """Declares an FFN as Llama and most decoders after it have it: `down(act(gate(x)) * up(x))`.

    Args:
        stream: As that of `SiteSpec`.
        more: Other attributes of `SiteSpec`.
    """
    spec = SiteSpec(
        "neuron",
        "mlp.down_proj",
        rows("mlp.gate_proj", "mlp.up_proj"),
        units="intermediate_size",
        block="mlp",
        stream=stream,
        before=("self_attn",),
        attributes={"mlp": {"intermediate_size": UNITS}},
        empties={"mlp": 1},
    )
    return replace(spec, **more)


@dataclass(frozen=True, eq=False)
class Stack:
    """Declares layers that run one after the other.

    Attributes:
        layers: Path of the list of layers in the base model, or of one module that is a layer by itself; `*` in it
            stands for every number there is.
        sites: What each layer has, in the order in which it runs; those that a layer lacks are skipped.
        config: Field of the sub-config that describes the stack; empty where it is the model's own.
        flag: Model input that is 1 at the positions that count; empty where all do.
        shared: Whether layers run several times in a pass.
        read_aside: Whether what a layer gives is read by something else than the next layer, too.
        count: Config field that counts the layers; empty where something reads all of them, however many there are.
    """

    layers: str
    sites: tuple[SiteSpec, ...]
    config: str = ""
    flag: str = "attention_mask"
    shared: bool = False
    read_aside: bool = False
    count: str = "num_hidden_layers"

    def config_of(self, config: PreTrainedConfig) -> PreTrainedConfig:
        """Picks the config that describes the stack; that of the model, where a stack is a model of its own."""
        return getattr(config, self.config) if self.config and hasattr(config, self.config) else config


WHOLE_LAYER = SiteSpec(LAYER, "", (), units="")


@dataclass(frozen=True, eq=False)
class Site:
    """Says where one site of one model is, and what sizes it has now; paths are relative to the base model.

    Attributes:
        name: Path of the output projection (of a router, of an expert: `...experts.3`, of a layer); the one key of a
            site everywhere.
        kind: `neuron`, `head`, `expert` or `layer`.
        stack: Declaration that the site comes from.
        layer: Number of the layer in its stack.
        depth: Number of the layer, counted through all stacks in the order in which they run.
        prefix: Path of the layer, with a dot at the end.
        spec: What the family says of it.
        units: F neurons, H query heads or E experts.
        unit_size: Columns a unit has in the output projection: 1, or Dh.
        group: Units that can only go together: 1, or H / G.
        shared: Whether all units have one group in common, which stays, so that each can go alone: G = 1 < H.
        expert: Number of the expert that the neurons are in, else None.
    """

    name: str
    kind: str
    stack: Stack
    layer: int
    depth: int
    prefix: str
    spec: SiteSpec
    units: int
    unit_size: int = 1
    group: int = 1
    shared: bool = False
    expert: int | None = None

    @property
    def columns(self) -> int:
        """Counts the input columns of its projection, C."""
        return self.units * self.unit_size

    @property
    def field(self) -> str:
        """Names the config field of its size: sites of one field keep one size in a stock model."""
        units = self.spec.units or self.spec.output
        return f"{self.stack.config}.{units}" if self.stack.config else units

    @property
    def tie(self) -> str | None:
        """Names what keeps one size in every model: the experts of a layer; None where the site stands alone."""
        return self.inside.removesuffix(".") if self.expert is not None else None

    @property
    def inside(self) -> str:
        """Gives the path that those of `output` and `rows` are relative to, with a dot at the end."""
        return f"{self.prefix}{self.spec.experts}." if self.expert is not None else self.prefix

    @property
    def block(self) -> str:
        """Gives the path of the largest module whose output is that of the site's projection."""
        return self.prefix + (self.spec.block or self.spec.output)

    def sizes(self, units: int) -> dict[str, int]:
        """Gives the sizes that go with a number of units: `units`, `groups`, `columns` and `per_group`."""
        groups = min(units, 1) if self.shared else units // self.group
        per_group = units // groups if groups else 0
        return {UNITS: units, GROUPS: groups, COLUMNS: units * self.unit_size, PER_GROUP: per_group}

    def groups_of(self, units: Ints) -> Ints:
        """Lists the groups that stay where some units, [n], do."""
        return np.unique(np.zeros_like(units) if self.shared else units // self.group)


def members(site: Site, sites: Sequence[Site]) -> list[Site]:
    """Lists the sites whose projections are that of a site: itself, those of the experts behind a router, or all in a
    layer.

    Args:
        site: Any site of a model.
        sites: All sites of the model.
    """
    if site.kind == LAYER:
        return [other for other in sites if other.prefix == site.prefix and other.kind not in (LAYER, "expert")]
    if site.kind != "expert":
        return [site]
    return [other for other in sites if other.tie == f"{site.prefix}{site.spec.experts}"]


def kept_of(site: Site, keep: KeepIndices) -> Ints:
    """Lists the units of a site that stay, sorted: all where nothing is said of it."""
    return np.unique(keep.get(site.name, np.arange(site.units)))


def fed_by(site: Site, sites: Sequence[Site]) -> Site | None:
    """Finds the site whose units are what a site's projection gives, in layers that follow one another without a sum.

    Args:
        site: Any site of a model.
        sites: All sites of the model.
    """
    others = (other for other in sites if other.prefix == site.prefix and other.expert is None)
    behind = (other for other in others if other.name != site.name)  # a router is named by rows of its own
    return next(
        (other for other in behind if any(other.prefix + rows.path == site.name for rows in other.spec.rows)), None
    )


def columns_behind(router: Site, own: Sequence[Site], keep: KeepIndices) -> Ints:
    """Lists the columns that stay, [S], of all experts behind a router side by side.

    Args:
        router: Site of the experts.
        own: Its members.
        keep: Which experts stay, and which of their neurons.
    """
    starts = np.cumsum([0, *(part.columns for part in own)])
    experts = kept_of(router, keep)
    neurons = [kept_of(own[expert], keep) for expert in experts]
    return np.concatenate([starts[expert] + each for expert, each in zip(experts, neurons, strict=True)])


def part_at(base_model: nn.Module, path: str) -> Any:
    """Finds the module, the parameter or the buffer at a path; None where there is none."""
    part: Any = base_model
    for name in path.split("."):
        part = next((held[name] for held in _children(part) if held.get(name) is not None), None)
        if part is None:
            return None
    return part


def _children(part: Any) -> Iterator[Mapping[str, Any]]:
    """Gives what a module holds by name; a tensor holds nothing."""
    return (vars(part).get(kind, {}) for kind in ("_modules", "_parameters", "_buffers"))
