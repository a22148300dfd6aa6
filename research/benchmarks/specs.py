"""Entries of a suite file: a data set, a method, a comparison that is tested."""

from typing import Any, Literal

from pydantic import Field, model_validator

from hf_mabprune.config import Strict, TargetConfig
from hf_mabprune.registry import check_options, nearest
from research.benchmarks.controls import CONTROLS
from research.benchmarks.peers import PEERS, Peer

NONE = "none"  # the label of no compensation
Allocation = Literal["own", "equal"]  # over layers: as a method ranks all arms, or the same width everywhere
OWN: Allocation = "own"
EQUAL: Allocation = "equal"
Component = str | dict[str, Any]  # a name, or a name and options


class RunSpec(Strict):
    """One data set of the comparison: a model on a task."""

    config: str = Field(description="YAML file of a pruning run, which says model and task")
    model: dict[str, Any] = Field({}, description="changes to the file's model section")
    task: dict[str, Any] = Field({}, description="changes to the file's task section")
    targets: list[TargetConfig] | None = Field(None, description="in the place of the suite's")
    chance: float | None = Field(
        None, description="main metric of a model that knows nothing; null: of the best constant answer"
    )


class MethodSpec(Strict):
    """Something that chooses what stays: a criterion, a search with a policy, a control that measures sets, a peer."""

    criterion: Component | None = Field(None, description="criterion and its options, e.g. {name: taylor}")
    policy: Component | None = Field(None, description="policy and its options, e.g. {name: ucb1, c: 1.0}")
    search: dict[str, Any] = Field({}, description="changes to the suite's search section, beside a policy")
    control: str | None = Field(None, description="control of `research.benchmarks.controls`, e.g. evolution")
    sweeps: float = Field(
        1.0, gt=0, description="forward tokens of a control, in passes of the whole model over one batch for each arm"
    )
    peer: Component | None = Field(
        None, description="another tool and its options, e.g. {name: torch_pruning, importance: taylor}"
    )

    @model_validator(mode="after")
    def _one_kind(self) -> "MethodSpec":
        if sum(given is not None for given in (self.criterion, self.policy, self.control, self.peer)) != 1:
            raise ValueError("a method needs a criterion, a policy, a control or a peer, one of them")
        if self.policy is None and self.search:
            raise ValueError("search belongs beside a policy; nothing else makes pulls")
        if self.control is not None and self.control not in CONTROLS:
            raise ValueError(f"no control '{self.control}'.{nearest(self.control, CONTROLS)}")
        self.make_peer()
        return self

    def make_peer(self) -> Peer | None:
        """Makes the peer, with its options checked.

        Raises:
            ValueError: If there is no such peer, or an option is unknown or wrong.
        """
        if self.peer is None:
            return None
        options = named(self.peer)
        name = str(options.pop("name", ""))
        if name not in PEERS:
            raise ValueError(f"no peer '{name}'.{nearest(name, PEERS)}")
        return PEERS[name](**check_options("peer", name, PEERS[name], options))


class PlannedSpec(Strict):
    """One comparison that is tested."""

    method: str = Field(description="of which something is claimed")
    against: str = Field(description="method that it is compared with")
    claim: Literal["better", "not_worse"] = Field("better", description="not_worse: nowhere by more than the margin")


def label_of(compensation: Component | None) -> str:
    """Names a compensation in a word, options included."""
    if compensation is None:
        return NONE
    options = named(compensation)
    name = str(options.pop("name", ""))
    return name + "".join(f":{option}={value}" for option, value in sorted(options.items()))


def named(component: Component) -> dict[str, Any]:
    """Gives name and options of a component in a mapping, however it was written."""
    return {"name": component} if isinstance(component, str) else dict(component)
