"""What tests show of model types, kept with their JUnit results: the table of families is made of it."""

import json
from collections.abc import Callable, Iterable
from importlib.metadata import version

from transformers import PreTrainedModel

from hf_mabprune.architectures import architecture_of
from hf_mabprune.architectures.shown import CHECKS
from hf_mabprune.arms import KeepIndices


class Shows:
    """Notes what one test shows, if it passes.

    Args:
        record: Function that keeps a property of the test: name, value.
    """

    def __init__(self, record: Callable[[str, object], None]) -> None:
        self._record = record

    def __call__(self, check: str, model_type: str, kinds: Iterable[str], layout: str = "", **more: object) -> None:
        """Notes one check.

        Args:
            check: Which of `CHECKS`, `sizes` or `command`.
            model_type: Type in question.
            kinds: Kinds of units that went.
            layout: Layout of the checkpoint; empty where there is none, so that it is shown for all.
            more: Figures and reasons that go with it.
        """
        assert check in (*CHECKS, "sizes", "command"), check
        versions = {name: version(name) for name in ("transformers", "torch")}
        note = {"check": check, "type": model_type, "kinds": sorted(kinds), "layout": layout, **versions, **more}
        self._record("shows", json.dumps(note))


def kinds_cut(model: PreTrainedModel, keep: KeepIndices) -> set[str]:
    """Lists the kinds of units of which some go."""
    sites = architecture_of(model).sites(model)
    return {site.kind for site in sites if len(keep.get(site.name, range(site.units))) < site.units}
