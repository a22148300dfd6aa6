"""What the tests have shown of every model type, beside what the package declares of it: the table of families.

What there is, and why some of it cannot be cut, is read off the declarations; what was shown, from a file that
`make families` writes.
"""

from dataclasses import dataclass
from importlib.resources import files

from pydantic import BaseModel
from transformers import AutoConfig, PreTrainedConfig

from hf_mabprune.architectures.base import ARCHITECTURES
from hf_mabprune.architectures.sites import SiteSpec, Stack
from hf_mabprune.arms import KINDS, LAYER

FILE = "shown.json"
LAYOUTS = ("per_layer", "uniform")
CHECKS = {  # name -> what passed
    "equivalence": "the masked, the cut and the reloaded model have equal outputs, for every AutoModel class",
    "pulls": "fast pulls give what pulls by their definition give",
    "gradients": "estimates by gradients are the slopes of the loss",
    "generation": "`generate` with a cache gives what the model in memory gives without",
    "second pruning": "a pruned model is pruned again",
    "second save": "a pruned model that was loaded and saved again loads again",
    "without the package": "a process that has transformers alone loads it",
    "whole blocks": "whole blocks go, and all of the first check holds",
}


class Shown(BaseModel):
    """Holds what was shown of one kind of units in one layout.

    Attributes:
        checks: Names of the checks that passed.
        failed: Names of those that did not.
        counts: Numbers of units a layer, below all of them, that plain AutoModel loads; None where none was tried.
        units: Units of a layer of the tiny model that they were tried on.
        hidden: Its hidden size.
        reason: Why it loads no other number.
    """

    checks: list[str] = []
    failed: list[str] = []
    counts: list[int] | None = None
    units: int = 0
    hidden: int = 0
    reason: str = ""

    def numbers(self) -> str:
        """Says which numbers of units plain AutoModel loads; nothing where it is not known."""
        if self.counts is None:
            return ""
        if self.counts == list(range(1, self.units)):
            return "any"
        divisors = [count for count in range(1, self.units) if self.hidden % count == 0]
        said = ", ".join(map(str, self.counts))
        return "divisors of the hidden size" if self.counts == divisors else f"{said} of {self.units}"


class ShownOfType(BaseModel):
    """Holds what was shown of one model type.

    Attributes:
        classes: AutoModel classes of the first check.
        seconds: Time of a default `mabprune prune` of a tiny model; None where there was none.
        rows: `KIND LAYOUT` -> what was shown.
    """

    classes: list[str] = []
    seconds: int | None = None
    rows: dict[str, Shown] = {}

    def time(self) -> str:
        """Says the seconds; nothing where there are none."""
        return "" if self.seconds is None else str(self.seconds)


class Results(BaseModel):
    """Holds what was shown of all types.

    Attributes:
        versions: Package -> version that it was shown with.
        types: Model type -> what was shown.
    """

    versions: dict[str, str] = {}
    types: dict[str, ShownOfType] = {}

    def timed(self) -> bool:
        """Tells whether the time of a run is known of some type."""
        return any(own.seconds is not None for own in self.types.values())


@dataclass(frozen=True)
class FamilyRow:
    """Holds a row of the table.

    Attributes:
        model_type: Model type.
        kind: Kind of units.
        layout: Layout of the checkpoint.
        state: `shown`, `cannot` be had, has `failed`, or is `not tested`.
        checks: Names of the checks that passed.
        numbers: Numbers of units that plain AutoModel loads, in words; empty where it loads none.
        reason: Why something cannot be had.
    """

    model_type: str
    kind: str
    layout: str
    state: str
    checks: tuple[str, ...] = ()
    numbers: str = ""
    reason: str = ""


def read_results() -> Results:
    """Reads what was shown, from the file in the package."""
    return Results.model_validate_json((files(__package__) / FILE).read_text())


def family_rows(model_type: str, results: Results) -> list[FamilyRow]:
    """Lists the rows of a model type: its kinds of units by its declaration, and layers, each in both layouts.

    Args:
        model_type: Model type, of this package or of a plugin.
        results: What was shown.

    Raises:
        ValueError: If the type is not supported.
    """
    shown = results.types.get(model_type, ShownOfType()).rows
    reasons = {kind: _reasons(model_type, specs) for kind, specs in _declared(model_type).items()}
    stay = [ARCHITECTURES.get(model_type).layers_stay(stack) for stack in ARCHITECTURES.get(model_type).stacks]
    reasons[LAYER] = (stay[0] if all(stay) else "", "")
    return [
        _row(model_type, kind, layout, shown.get(f"{kind} {layout}", Shown()), *why)
        for kind, why in reasons.items()
        for layout in LAYOUTS
    ]


def _row(model_type: str, kind: str, layout: str, shown: Shown, whole: str, sometimes: str) -> FamilyRow:
    """Makes one row.

    Args:
        model_type: Model type.
        kind: Kind of units.
        layout: Layout.
        shown: What was shown of them.
        whole: Why no unit can be cut, by the declaration.
        sometimes: Why none can be with other configs.
    """
    place = model_type, kind, layout
    if whole:
        return FamilyRow(*place, "cannot", reason=whole)
    if shown.failed:
        return FamilyRow(*place, "failed", tuple(shown.checks), reason=f"failed: {', '.join(shown.failed)}")
    if shown.counts == []:
        return FamilyRow(*place, "cannot", reason=shown.reason)
    reason = "; ".join(filter(None, (shown.reason, sometimes)))
    return FamilyRow(*place, "shown" if shown.checks else "not tested", tuple(shown.checks), shown.numbers(), reason)


def _declared(model_type: str) -> dict[str, list[tuple[Stack, SiteSpec]]]:
    """Lists what a type declares of each kind of units: kind -> specifications of sites, with their stacks."""
    specs = [(stack, spec) for stack in ARCHITECTURES.get(model_type).stacks for spec in stack.sites]
    kinds = sorted({spec.kind for _, spec in specs}, key=KINDS.index)
    return {kind: [(stack, spec) for stack, spec in specs if spec.kind == kind] for kind in kinds}


def _usual_config(model_type: str) -> PreTrainedConfig | None:
    """Makes the config that a type has by default; None where transformers does not know the type."""
    try:
        return AutoConfig.for_model(model_type)
    except ValueError:
        return None


def _reasons(model_type: str, specs: list[tuple[Stack, SiteSpec]]) -> tuple[str, str]:
    """Says why units of a kind stay with the usual config, and why they do with others; empty where they can go."""
    if not all(spec.reason for _, spec in specs):
        return "", ""
    config, why = _usual_config(model_type), specs[0][1].reason
    if config is None or any(spec.when(stack.config_of(config)) for stack, spec in specs):
        return "", f"with some configs not at all: {why}"
    return why, ""
