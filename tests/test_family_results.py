"""From JUnit results to the table of families: what passed, what failed, and what was skipped."""

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import pytest

from hf_mabprune.architectures.shown import Results, Shown
from tests.shows import Shows

HEADS = ("bert", ["head"], "uniform")
REFUSED = "a stock bert config cannot say 3 heads: it makes a [4], not [3]"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The script as it is run, with the others beside it."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "scripts"))
    import families  # type: ignore[import-not-found]

    yield families
    for name in ("families", "components"):
        sys.modules.pop(name, None)


def gathered(script: ModuleType, folder: Path, *cases: tuple[str, tuple[Any, ...], dict[str, Any]]) -> Results:
    """What a file of results shows; each case has an outcome, and what it noted."""
    root = ElementTree.Element("testsuite")
    for outcome, what, more in cases:
        case = ElementTree.SubElement(root, "testcase")
        properties = ElementTree.SubElement(case, "properties")

        def record(name: str, value: object, properties: ElementTree.Element = properties) -> None:
            ElementTree.SubElement(properties, "property", name=name, value=str(value))

        Shows(record)(*what, **more)
        if outcome != "passed":
            ElementTree.SubElement(case, outcome)
    ElementTree.ElementTree(root).write(folder / "results.xml")
    return script.gathered([*script.notes(str(folder / "results.xml"))])


def test_what_passed_is_shown_and_what_failed_once_has_failed(script: ModuleType, tmp_path: Path) -> None:
    both = ("bert", ["neuron", "head"], "per_layer")
    results = gathered(
        script, tmp_path,
        ("passed", ("second save", *both), {}),
        ("passed", ("equivalence", *both), {"head": "AutoModelForMaskedLM"}),
        ("passed", ("equivalence", *both), {"head": "AutoModel"}),
        ("passed", ("generation", *both), {}),
        ("failure", ("generation", *both), {}),
        ("error", ("second pruning", "bert", ["head"], "per_layer"), {}),
        ("skipped", ("pulls", "bert", ["head"]), {}),
        ("passed", ("command", "bert", ["neuron"]), {"seconds": 7}),
    )  # fmt: skip
    own = results.types["bert"]
    assert (own.classes, own.seconds) == (["AutoModel", "AutoModelForMaskedLM"], 7)
    assert own.rows == {
        "head per_layer": Shown(checks=["equivalence", "second save"], failed=["generation", "second pruning"]),
        "neuron per_layer": Shown(checks=["equivalence", "second save"], failed=["generation"]),
    }
    assert Results.model_validate_json(script.as_lines(results)) == results


def test_what_knows_no_layout_is_shown_for_both(script: ModuleType, tmp_path: Path) -> None:
    results = gathered(script, tmp_path, ("passed", ("pulls", "vit", ["head"]), {}))
    assert results.types["vit"].rows == dict.fromkeys(("head per_layer", "head uniform"), Shown(checks=["pulls"]))


def test_numbers_that_a_stock_config_says_come_with_the_reason_for_no_more(script: ModuleType, tmp_path: Path) -> None:
    figures = {"counts": [], "units": 4, "hidden": 32, "reason": f"{REFUSED}. Use layout per_layer, or prune neurons"}
    results = gathered(script, tmp_path, ("passed", ("sizes", *HEADS), figures))
    assert results.types["bert"].rows["head uniform"] == Shown(counts=[], units=4, hidden=32, reason=REFUSED)
    results = gathered(script, tmp_path, ("failure", ("sizes", *HEADS), figures))
    assert results.types["bert"].rows["head uniform"].failed == ["equivalence"]


def test_results_of_two_installations_are_not_mixed(script: ModuleType, tmp_path: Path) -> None:
    old = {"head": "AutoModel", "torch": "1.0"}
    with pytest.raises(ValueError, match="results must be of one installation"):
        gathered(script, tmp_path, ("passed", ("pulls", *HEADS), {}), ("passed", ("equivalence", *HEADS), old))
