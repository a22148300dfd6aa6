"""Runs of the study: what cells there are and what they say, and a kill that changes nothing."""

import runpy
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from research.studies.paper.methods import CRITERIA, POLICIES, VARIANTS, Protocol, pruning_methods
from research.studies.paper.rivals import RIVALS, SKLEARN_MLP, Rows, candidates, fit_rivals
from research.studies.paper.rows import DENSE, KEY, add_results, read_results
from research.studies.paper.tables import read_table, splits
from research.studies.store import CELLS, SETTINGS, read_cells
from tests.problems import apart
from tests.research.studies.kills import kill_after_a_unit
from tests.research.studies.small_table import write_tables
from tests.research.studies.tiny_study import METHODS, PROTOCOL, tiny_study

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, pd.DataFrame]]:
    """The folder of a study that nothing disturbed, its tables under `data`, and its cells."""
    with apart(ROOT / "research" / "studies" / "paper"):
        yield _made(tmp_path_factory.mktemp("study"))


def _made(folder: Path) -> tuple[Path, pd.DataFrame]:
    (folder / "data").mkdir()
    write_tables(folder / "data")
    study = tiny_study(folder / "data", folder / "whole")
    return folder, study.run(study.units(["draw=0"]))


def test_every_method_has_a_cell_for_each_fraction_as_cut_and_trained_further(
    whole: tuple[Path, pd.DataFrame],
) -> None:
    _, cells = whole
    for (suite, _), rows in cells.groupby(["suite", "setting"]):
        plain = rows[rows["variant"] == ""]
        counts = plain.groupby(["method", "reward"]).size().to_dict()
        assert counts == {
            (DENSE, ""): 2, ("ucb1", "loss"): 4, ("ucb1", "kl"): 4, ("race", "loss"): 4, ("race", "kl"): 4,
            ("random", ""): 4, ("linear", ""): 1,
        }  # fmt: skip
        assert set(rows["variant"]) == {"", *VARIANTS} and not rows.loc[rows["variant"] != "", "tuned"].any()
        assert set(rows["metric"]) == {"accuracy" if suite == "classification" else "r2"}
        assert rows["dense_score"].nunique() == 1 and (rows["kl"].dropna() >= 0).all()


def test_the_dense_network_is_what_all_are_compared_with(whole: tuple[Path, pd.DataFrame]) -> None:
    _, cells = whole
    dense = cells[(cells["method"] == DENSE) & ~cells["tuned"]].set_index("setting")
    assert (dense["score"] == dense["dense_score"]).all() and (dense["kl"] == 0).all()
    further = cells[(cells["method"] == DENSE) & cells["tuned"]].set_index("setting")
    assert (further["kl"] > 0).all()
    trained = 3 * 800 * 32
    assert (dense["tokens"] == trained).all()
    searched = cells[(cells["method"] == "ucb1") & (cells["variant"] == "")]
    assert set(searched["pulls"]) == {round(0.5 * 128)}
    assert (cells.loc[cells["method"] == "random", "pulls"] == 0).all()


def test_rewards_on_the_rows_of_the_report_read_test_rows_and_nothing_else(
    whole: tuple[Path, pd.DataFrame],
) -> None:
    from research.studies.paper.cells import Bench
    from research.studies.paper.networks import network

    folder, _ = whole
    table = read_table(folder / "data", "small")
    split = next(splits(table))
    bench = Bench.of(table, 0, split, network(table, 0, split, folder / "whole" / "networks"), PROTOCOL)
    (test,) = bench.session.batches["test"]
    assert test.examples == len(split.test)
    wrong = bench._on_test().batches["calibration"]
    rows = np.concatenate([batch["features"].numpy() for batch in wrong])
    np.testing.assert_array_equal(rows, test["features"].numpy()[: len(rows)])
    seen = {tuple(row) for batch in bench.session.batches["calibration"] for row in batch["features"].numpy().tolist()}
    assert seen <= {tuple(row) for row in bench.train["features"].numpy().tolist()}
    assert len(bench.session.batches["calibration"]) >= 4


@pytest.mark.whole
def test_a_run_that_is_killed_and_goes_on_ends_with_the_same_file(whole: tuple[Path, pd.DataFrame]) -> None:
    folder, _ = whole
    out = folder / "killed"
    kill_after_a_unit("tests.research.studies.tiny_study", folder / "data", out)
    assert not (out / CELLS).exists()
    for place in (out, folder / "whole"):
        study = tiny_study(folder / "data", place)
        study.run(study.units(["draw=0"]))
    assert (out / CELLS).read_bytes() == (folder / "whole" / CELLS).read_bytes()


def test_units_can_be_asked_for_and_are_refused_where_there_are_none(whole: tuple[Path, pd.DataFrame]) -> None:
    study = tiny_study(whole[0] / "data", whole[0] / "whole")
    assert {unit.name for unit in study.units()} == {
        "classification/small/0", "classification/small/1", "regression/numbers/0", "regression/numbers/1",
    }  # fmt: skip
    assert [unit.setting for unit in study.units(["suite=regression", "draw=1"])] == ["numbers"]
    with pytest.raises(ValueError, match="--only: no setting 'smal'"):
        study.units(["setting=smal"])
    with pytest.raises(ValueError, match="splits must be from 1 to 10, got 11"):
        tiny_study(study.data, study.out, Protocol(splits=11)).units()
    with pytest.raises(ValueError, match="made under other settings"):
        tiny_study(study.data, study.out, Protocol()).run([])


def test_all_methods_are_those_of_the_study() -> None:
    methods = list(pruning_methods(Protocol(), draw=0))
    named = [(method.name, method.reward, method.variant) for method in methods]
    assert len(set(named)) == len(named) == 2 * 10 + len(CRITERIA) + 2 * len(POLICIES)
    assert not [method for method in pruning_methods(Protocol(), draw=9) if method.variant]
    for method in methods:
        if method.name in POLICIES:
            assert method.search["arms_per_step"] == 1 and method.search["rule"] == "single"
    assert set(METHODS) & {method.name for method in methods} == {"ucb1", "race", "random"}


@pytest.mark.parametrize("classifies", [True, False])
def test_rivals_have_eight_configurations_each(classifies: bool) -> None:
    found = candidates(16, classifies, seed=0)
    assert tuple(found) == RIVALS
    for _, grid in found.values():
        assert np.prod([len(values) for values in grid.values()]) == 8


@pytest.mark.parametrize("classifies", [True, False])
def test_rivals_learn_and_large_tables_have_no_gaussian_process(classifies: bool) -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(1200, 3))
    labels = (features[:, 0] > 0).astype(int) if classifies else features[:, 0]
    train, test = Rows(features[:1100], labels[:1100]), Rows(features[1100:], labels[1100:])
    wanted = ("linear", "gaussian_process")
    assert [rival.name for rival in fit_rivals(wanted, train, test, classifies, 60, 0)] == ["linear"]
    names = ("linear", "knn", "gaussian_process", SKLEARN_MLP)
    fitted = {rival.name: rival.score for rival in fit_rivals(names, train.drawn(200, 0), test, classifies, 60, 0)}
    assert tuple(fitted) == names and min(fitted.values()) > 0.8, fitted


def program(monkeypatch: pytest.MonkeyPatch, *options: str) -> int:
    """Calls scripts/reproduce_paper.py; gives its exit code."""
    monkeypatch.setattr(sys, "argv", ["reproduce_paper.py", *options])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "scripts" / "reproduce_paper.py"), run_name="__main__")
    return int(str(ended.value.code))


def test_a_page_is_made_of_the_cells_of_finished_runs(
    whole: tuple[Path, pd.DataFrame],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, cells = whole
    options = ["--results", str(tmp_path / "results.parquet"), "--page", str(tmp_path / "page.md")]
    assert program(monkeypatch, "--report", "--add", str(folder / "whole"), *options) == 0
    first, said = (tmp_path / "page.md").read_text(), capsys.readouterr().out
    assert "classification 1 settings" in first and "25%, 50% of the hidden neurons" in first
    assert f"written to {tmp_path / 'page.md'}" in said and "deep: UCB1 and Thompson Sampling" in said
    assert len(read_results(tmp_path / "results.parquet")) == len(cells)
    assert sorted(path.stem for path in (tmp_path / "figures").iterdir()) == [
        f"paper-{kind}-{suite}" for kind in ("cost", "fractions") for suite in sorted(set(cells["suite"]))
    ]


def test_units_that_results_hold_are_not_made_again(whole: tuple[Path, pd.DataFrame], tmp_path: Path) -> None:
    folder, _ = whole
    results, study = tmp_path / "results.parquet", tiny_study(folder / "data", tmp_path / "new")
    units = study.units()
    assert study.missing(units, results) == units
    add_results([read_cells(folder / "whole", KEY)], results)
    assert {(unit.setting, unit.draw) for unit in study.missing(units, results)} == {("small", 1), ("numbers", 1)}
    other = tiny_study(folder / "data", tmp_path / "new", replace(PROTOCOL, rounds=3))
    with pytest.raises(ValueError, match=r"cells of tables were made under other settings .* differ in protocol"):
        other.missing(units, results)


def test_what_is_missing_on_the_command_line_is_said_in_a_line(
    whole: tuple[Path, pd.DataFrame],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    assert program(monkeypatch, "--out", str(tmp_path)) == 2
    assert "--data is missing: the folder that tabular, mnist, cifar10, sst2, ... lie in" in capsys.readouterr().err
    assert program(monkeypatch, "--data", str(tmp_path), "--out", str(tmp_path), "--processes", "0") == 2
    assert "--processes must be at least 1, got 0" in capsys.readouterr().err


def test_a_folder_of_another_study_is_refused_before_any_part_is_begun(
    whole: tuple[Path, pd.DataFrame],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    shutil.copytree(whole[0] / "data", tmp_path / "data" / "tabular")
    deep = tmp_path / "out" / "deep"
    deep.mkdir(parents=True)
    (deep / SETTINGS).write_text("{}")
    assert program(monkeypatch, "--data", str(tmp_path / "data"), "--out", str(tmp_path / "out")) == 2
    assert f"{deep / SETTINGS}: cells were made under other settings" in capsys.readouterr().err
    assert not list((tmp_path / "out" / "tables").glob("*/*"))
