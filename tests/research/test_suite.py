"""Suite files of the quality benchmark: what is wrong in them gets a line, before any model is loaded."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from research.benchmarks import quality
from research.benchmarks.suite import read_suite
from tests.research.suites import SUITE, write

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": {}}, r"unknown key 'method'\. Did you mean 'methods'\?"),
        ({"runs": {}}, r"runs: Dictionary should have at least 1 item"),
        ({"runs": {"first": {}}}, r"missing key 'runs.first.config'"),
        ({"seeds": [0, 0]}, r"seeds must not repeat, got 0, 0"),
        ({"allocations": ["own", "own"]}, r"allocations must not repeat, got own, own"),
        ({"planned": [{"method": "race", "against": "magnitude"}]}, r"planned: no method 'race'"),
        ({"operating_points": ["heads-0.9"]}, "operating_points: no target 'heads-0.9'. Known: heads-0.25, heads-0.5"),
        ({"methods": {"magnitude": {}, "sweep": {"policy": "sweep"}}}, "a method needs a criterion, a policy, a"),
        ({"methods": {"sweep": {"control": "evolve"}}, "planned": []}, "no control 'evolve'. Did you mean"),
        ({"targets": [{"heads": 1.5}]}, r"targets.0.heads.*less than 1"),
    ],
)
def test_a_wrong_suite_file_gets_a_line(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_suite(write(tmp_path, {**SUITE, **change}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"methods": {"x": {"policy": "rase"}}}, "run 'first', method 'x': unknown policy 'rase'"),
        ({"methods": {"x": {"criterion": "magnitud"}}}, "unknown criterion 'magnitud'. Did you mean 'magnitude'"),
        ({"methods": {"x": {"criterion": {"name": "taylor", "sign": 1}}}}, "criterion 'taylor' has no option 'sign'"),
        ({"methods": {"x": {"policy": "sweep", "search": {"pulls": 1}}}}, r"unknown key 'search.pulls'"),
        ({"compensations": ["least_square"]}, "unknown compensation 'least_square'"),
        ({"runs": {"first": {"config": "nowhere.yaml"}}}, "nowhere.yaml"),
    ],
)
def test_what_cannot_run_is_refused_before_a_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr(quality, "load_model", lambda *_: pytest.fail("a model was loaded"))
    suite = read_suite(write(tmp_path, {**SUITE, "planned": [], **change}))
    with pytest.raises((ValueError, OSError), match=message):
        quality.run(suite, suite.cells(), tmp_path / "rows.parquet")


def test_an_unknown_policy_is_no_fault_of_the_cells_that_are_asked_for(tmp_path: Path) -> None:
    suite = read_suite(write(tmp_path, {**SUITE, "methods": {**SUITE["methods"], "x": {"policy": "rase"}}}))
    suite.check_cells(suite.cells(["method=magnitude,sweep"]))
    with pytest.raises(ValueError, match=r"no method 'magnitud'. Did you mean 'magnitude'"):
        suite.cells(["method=magnitud"])
    with pytest.raises(ValueError, match="--only takes name=value"):
        suite.cells(["model=x"])


@pytest.mark.parametrize(("layout", "allocations"), [("per_layer", ["own", "equal"]), ("uniform", ["own"])])
def test_what_ranks_arms_has_two_allocations_where_layers_may_differ(
    tmp_path: Path, layout: str, allocations: list[str]
) -> None:
    suite = read_suite(write(tmp_path, {**SUITE, "layout": layout}))
    for method, expected in (("magnitude", allocations), ("sweep", allocations), ("evolution", ["own"])):
        assert list(dict.fromkeys(cell.allocation for cell in suite.cells([f"method={method}"]))) == expected
    assert suite.plan() != suite.model_copy(update={"allocations": ["own"]}).plan()


def test_a_criterion_has_cells_of_those_targets_alone_that_it_can_rank(tmp_path: Path) -> None:
    targets, methods = [{"neurons": 0.5}, {"experts": 0.5}], {"reap": {"criterion": "reap"}}
    suite = read_suite(write(tmp_path, {**SUITE, "targets": targets, "methods": {**SUITE["methods"], **methods}}))
    assert {cell.target for cell in suite.cells(["method=reap"])} == {"experts-0.5"}
    assert {cell.target for cell in suite.cells(["method=magnitude"])} == {"neurons-0.5", "experts-0.5"}


def test_an_overlay_replaces_data_sets_whole(tmp_path: Path) -> None:
    files = {"train": "a.parquet"}
    local = {"runs": {"first": {"task": {"dataset": {"path": "parquet", "data_files": files}, "batch_size": 4}}}}
    hub = {"runs": {"first": {"task": {"dataset": {"path": "nyu-mll/glue", "name": "cola"}}}}}
    paths = write(tmp_path, SUITE), [write(tmp_path, hub, "hub.yaml"), write(tmp_path, local, "local.yaml")]
    suite = read_suite(*paths, overrides=["--runs.first.model.name", "somewhere", "--seeds=[3]"])
    settings = suite.settings("first")
    assert settings.task.dataset.model_dump(exclude_defaults=True) == {"path": "parquet", "data_files": files}
    assert (settings.model.name, settings.task.batch_size, suite.seeds) == ("somewhere", 4, [3])
    assert settings.task.evaluation_examples == 32
    assert suite.settings("second").model.name == "examples/quickstart/model"


def test_the_committed_suite_is_valid() -> None:
    suite = read_suite("configs/benchmark/quality.yaml")
    cells = suite.cells()
    suite.check_cells([cell for cell in cells if cell.method != "race"])
    assert len({cell.key for cell in cells}) == len(cells)
    assert {cell.method for cell in cells} >= {"random", "fisher_rearranged", "obs", "race"}


def test_the_script_says_what_is_wrong_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = importlib.util.spec_from_file_location("benchmark", ROOT / "scripts/benchmark.py")
    assert spec and spec.loader
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.setattr("sys.argv", ["benchmark.py", "quality", "--suite", write(tmp_path, {"targets": []})])
    assert script.main() == 2
    assert "missing key 'runs'" in capsys.readouterr().err
