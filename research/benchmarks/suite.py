"""The suite file of the quality benchmark: what is compared on what, and what will be tested, before anything runs."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError, model_validator

from hf_mabprune.compensation import Compensation, make_compensation
from hf_mabprune.config import PruneConfig, Strict, TargetConfig, check, read_yaml
from hf_mabprune.criteria.base import CRITERIA, Criterion
from hf_mabprune.effects.rewards import check_reward
from hf_mabprune.registry import check_options, nearest
from hf_mabprune.search.run import make_policy, make_rule
from research.benchmarks.only import matching
from research.benchmarks.overlays import dotted, merged
from research.benchmarks.specs import (
    EQUAL,
    OWN,
    Allocation,
    Component,
    MethodSpec,
    PlannedSpec,
    RunSpec,
    label_of,
    named,
)


class Suite(Strict):
    """Everything about one comparison of methods."""

    runs: dict[str, RunSpec] = Field(min_length=1, description="name -> model and task: one data set of the tests")
    targets: list[TargetConfig] = Field(min_length=1, description="what goes; a list is cut from one search")
    methods: dict[str, MethodSpec] = Field(min_length=1, description="name -> what chooses what stays")
    compensations: list[Component | None] = Field([None], min_length=1, description="null: none")
    allocations: list[Allocation] = Field(
        [OWN, EQUAL],
        min_length=1,
        description="of methods that rank arms: by rank over all layers, or equal widths; held-out data pick one",
    )
    seeds: list[int] = Field([0], min_length=1, description="of the draw of calibration data, and of the methods")
    block_size: int = Field(32, gt=0, description="neighbouring neurons that go together")
    layout: Literal["per_layer", "uniform"] = Field("per_layer", description="of all methods")
    search: dict[str, Any] = Field({}, description="search section of all methods with a policy")
    calibration_examples: int | None = Field(None, gt=0, description="cap on what the runs' files say")
    evaluation_examples: int | None = Field(None, gt=0, description="the same of test and of validation examples")
    operating_points: list[str] | None = Field(
        None, min_length=1, description="names of the targets that ranks and tests average over; null: all"
    )
    near_chance: float = Field(
        0.05, ge=0.0, description="runs whose dense main metric is this near to chance are left out of ranks"
    )
    planned: list[PlannedSpec] = Field([], description="comparisons that are tested")
    margin: float = Field(0.02, ge=0.0, description="difference in metric retained that counts as no worse")
    out: str = Field("runs/quality.parquet", description="where the rows go")

    @model_validator(mode="after")
    def _names_exist(self) -> "Suite":
        for pair in self.planned:
            for name in (pair.method, pair.against):
                if name not in self.methods:
                    raise ValueError(f"planned: no method '{name}'.{nearest(name, self.methods)}")
        known = {size.name() for run in self.runs for target in self.targets_of(run) for size in target.sizes()}
        for name in self.operating_points or ():
            if name not in known:
                raise ValueError(f"operating_points: no target '{name}'. Known: {', '.join(sorted(known))}")
        labels = [label_of(compensation) for compensation in self.compensations]
        unique = (("compensations", labels), ("seeds", self.seeds), ("allocations", self.allocations))
        for what, values in unique:
            if len(set(values)) < len(values):
                raise ValueError(f"{what} must not repeat, got {', '.join(map(str, values))}")
        return self

    def targets_of(self, run: str) -> list[TargetConfig]:
        """Gives the run's own targets, or the suite's."""
        return self.runs[run].targets or self.targets

    def allocations_of(self, method: str) -> list[Allocation]:
        """Gives the suite's allocations; only its own for what finds a set and ranks no arms, a control or a peer, and
        in the layout `uniform`, whose widths are equal as it is.
        """
        spec = self.methods[method]
        ranks = spec.criterion is not None or spec.policy is not None
        return self.allocations if ranks and self.layout == "per_layer" else [OWN]

    def compensation(self, label: str) -> Compensation | None:
        """Makes the compensation of that label, with its options checked; None for none."""
        given = self._given(label)
        return None if given is None else make_compensation(given)

    def _given(self, label: str) -> Component | None:
        return {label_of(given): given for given in self.compensations}[label]

    def criterion(self, method: str) -> Criterion:
        """Makes the method's criterion, with its options checked.

        Raises:
            ValueError: If there is no such criterion, or an option is unknown or wrong.
        """
        options = named(self.methods[method].criterion or "")
        name = options.pop("name", "")
        criterion = CRITERIA.get(name)
        return criterion(**check_options("criterion", name, criterion, options))

    def settings(
        self,
        run: str,
        method: str | None = None,
        target: TargetConfig | None = None,
        compensation: str | None = None,
    ) -> PruneConfig:
        """Makes the config of one run.

        Args:
            run: Name of the run.
            method: Method whose policy and search settings are taken; None for what all methods share.
            target: What goes; None for a target that has arms of both kinds.
            compensation: Label of the one that the search may count on; None for that of the run's file.

        Raises:
            ValueError: One line a fault.
        """
        given, spec = _file(self.runs[run].config), self.runs[run]
        given = merged(given, {"model": spec.model, "task": spec.task})
        caps = {name: getattr(self, name) for name in ("calibration_examples", "evaluation_examples")}
        capped = {name: min(cap, given["task"].get(name) or cap) for name, cap in caps.items() if cap is not None}
        given = merged(given, {"task": capped})
        # What chooses is the suite's to say, whatever the run's file lets a criterion choose.
        given["search"] = merged(given.get("search") or {}, {"criterion": None, **self.search})
        if method and (policy := self.methods[method].policy):
            given["search"] = merged(given["search"], {**self.methods[method].search, "policy": named(policy)})
        if compensation is not None:
            given["compensation"] = self._given(compensation)
        goes = target.model_dump(exclude_none=True) if target else {"neurons": 0.5, "heads": 0.5}
        arms = ["neuron", "head"]
        if any(size.experts is not None for size in self.targets_of(run)):
            arms, goes = [*arms, "expert"], goes if target else {**goes, "experts": 0.5}
        prune = {"arms": arms, "block_size": self.block_size, "layout": self.layout, "target": goes}
        return check(given | {"prune": (given.get("prune") or {}) | prune})

    def cells(self, only: Sequence[str] = ()) -> list["Cell"]:
        """Gives every cell, or those that are asked for.

        Args:
            only: Filters, see `matching`.

        Raises:
            ValueError: For a field or a value that no cell has.
        """
        return matching(list(self._cells()), only, FILTERS)

    def _cells(self) -> Iterator["Cell"]:
        for task in self.runs:
            for seed in self.seeds:
                for target in self.targets_of(task):
                    for method in self.methods:
                        for size in (size for size in target.sizes() if self._ranks(method, size)):
                            for compensation in map(label_of, self.compensations):
                                for allocation in self.allocations_of(method):
                                    yield Cell(task, seed, target, method, size, compensation, allocation)

    def _ranks(self, method: str, size: TargetConfig) -> bool:
        """Says whether a method can rank the kinds of arms that a size counts."""
        name = named(self.methods[method].criterion or "").get("name")
        kinds = [kind for kind, fraction in size.counted().items() if fraction is not None]
        return name not in CRITERIA.names() or CRITERIA.get(name).ranks(kinds)

    def check_cells(self, cells: Sequence["Cell"]) -> None:
        """Refuses all that can be refused before a model is loaded: settings, methods, compensations.

        Raises:
            ValueError: One line a fault, with the method or run that has it.
        """
        for label in dict.fromkeys(cell.compensation for cell in cells):
            self.compensation(label)
        checked: set[tuple[str, str, str]] = set()
        for cell in cells:
            try:
                if (combination := (cell.task, cell.method, cell.compensation)) not in checked:
                    self._check_method(*combination)
                    checked.add(combination)
                if peer := self.methods[cell.method].make_peer():
                    peer.check(cell.size.fractions())
            except (ValueError, OSError) as error:
                raise ValueError(f"run '{cell.task}', method '{cell.method}': {error}") from None

    def _check_method(self, run: str, method: str, compensation: str) -> None:
        """Makes what a method needs, beside a model, with its options checked."""
        if self.methods[method].criterion is not None:
            self.criterion(method)
        settings = self.settings(run, method, compensation=compensation)
        if self.methods[method].policy is not None:
            check_reward(settings.search.reward)
            make_policy(settings, 1)
            make_rule(settings)

    def plan(self) -> str:
        """Digests what the tests depend on: rows carry it, to show that it was there before them."""
        names = {"planned", "margin", "near_chance", "operating_points", "allocations"}
        return digest(self.model_dump(include=names))


@dataclass(frozen=True)
class Cell:
    """One number of the comparison: of one of the allocations of a method, at one size.

    Attributes:
        task: Name of the run.
        entry: One of the suite's targets; its sizes are cut from one search.
        size: The size that is measured.
        compensation: Label of the compensation.
        allocation: How what goes is spread over the layers.
    """

    task: str
    seed: int
    entry: TargetConfig
    method: str
    size: TargetConfig
    compensation: str
    allocation: Allocation = OWN

    def __str__(self) -> str:
        return " / ".join(map(str, self.key))

    @property
    def target(self) -> str:
        """Name of the size, e.g. neurons-0.6."""
        return self.size.name()

    @property
    def family(self) -> str:
        """What goes, e.g. neurons+heads."""
        return "+".join(self.size.fractions())

    @property
    def sparsity(self) -> float:
        """Mean of the fractions that go."""
        fractions = self.size.fractions().values()
        return sum(fractions) / len(fractions)

    @property
    def key(self) -> tuple[str, str, str, str, str, int]:
        """What a row is known by: `KEY`."""
        return self.task, self.target, self.method, self.compensation, self.allocation, self.seed

    def fingerprint(self, suite: Suite) -> str:
        """Digests all settings that the cell's numbers depend on."""
        dumped = self.settings(suite).model_dump(exclude_defaults=True, exclude={"output", "compensation"})
        if not self.searches(suite):
            dumped.pop("search", None)
        spec = suite.methods[self.method]
        method = {"control": spec.control, "sweeps": spec.sweeps} if spec.control else spec.criterion or spec.peer
        return digest([dumped, method, self.compensation, suite.runs[self.task].chance])

    def settings(self, suite: Suite) -> PruneConfig:
        """Gives the settings of what chooses: a search knows all sizes cut from it, and what it can count on."""
        entry = self.entry if self.searches(suite) else self.size
        return suite.settings(self.task, self.method, entry, self.compensation)

    def choice(self, suite: Suite) -> str:
        """Digests what decides which arms stay: the same for cells that share one choice."""
        settings = self.settings(suite)
        search = settings.search
        counts_on_refits = self.searches(suite) and settings.resolved_rule()["name"] == "refit"
        counted = self.compensation if counts_on_refits else None
        return digest([self.method, self.entry.model_dump(), search.model_dump(), counted])

    def searches(self, suite: Suite) -> bool:
        """Says whether the method makes pulls."""
        return suite.methods[self.method].policy is not None


PARTS: dict[str, type[BaseModel]] = {
    "runs": RunSpec, "methods": MethodSpec, "planned": PlannedSpec, "targets": TargetConfig,
}  # fmt: skip
KEY = ["task", "target", "method", "compensation", "allocation", "seed"]
FILTERS = [*KEY, "family"]


def read_suite(path: str, overlays: Sequence[str] = (), overrides: Sequence[str] = ()) -> Suite:
    """Reads and checks a suite file.

    Args:
        path: Suite file.
        overlays: Files of which each is merged over what was before, e.g. with local paths: mappings key by key, all
            else replaced, and so `dataset`, `criterion` and `policy` as a whole.
        overrides: Changes from a command line: `--runs.sst2.model.name DIR ...`, values in YAML.

    Raises:
        ValueError: One line a fault.
        OSError: If a file cannot be read.
    """
    given: dict[str, Any] = {}
    for file in (path, *overlays):
        given = merged(given, read_yaml(file))
    for override in dotted(overrides):
        given = merged(given, override)
    try:
        return Suite.model_validate(given)
    except ValidationError as error:
        faults = dict.fromkeys(_explain(fault) for fault in error.errors())
        raise ValueError("\n".join(f"{path}: {fault}" for fault in faults)) from None


def digest(value: Any) -> str:
    """Digests anything that JSON can say."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


@cache
def _file(path: str) -> dict[str, Any]:
    """Reads a run's file, once for all cells."""
    return read_yaml(path)


def _explain(fault: Any) -> str:
    """Says one pydantic fault in a line."""
    where = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        place = next((str(name) for name in reversed(fault["loc"][:-1]) if name in PARTS), "")
        known = PARTS.get(place, Suite).model_fields
        return f"unknown key '{where}'.{nearest(str(fault['loc'][-1]), known)}"
    if fault["type"] == "missing":
        return f"missing key '{where}'"
    message = fault["msg"].removeprefix("Value error, ")
    given = "" if isinstance(fault["input"], dict | Strict) else f", got {fault['input']!r}"
    return f"{where}: {message}{given}" if where else message
