"""Runs of the interpretability study on a tiny network: which cells there are, what they say, a run that goes on."""

import runpy
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from research.studies.interpretability.page import page_text, write_page
from research.studies.interpretability.protocol import (
    AS_CUT,
    EQUAL,
    FREE,
    KINDS,
    ONE_SHOT,
    STRUCTURED,
    UNEQUAL,
    Protocol,
)
from research.studies.interpretability.rows import (
    CONTROL,
    CONTROLS,
    UNPRUNED,
    UNTRAINED,
    control,
    pruned,
    read_results,
    write_results,
)
from research.studies.interpretability.study import Study
from research.studies.interpretability.unit_page import look, section
from research.studies.store import CELLS
from research.studies.store import PROTOCOL as PROTOCOL_KEY
from tests.research.studies.kills import kill_after_a_unit
from tests.research.studies.tiny_readable_study import PROTOCOL, tiny_study, write_images

ROOT = Path(__file__).parents[3]
RESULTS = ROOT / "research" / "studies" / "interpretability" / "results.parquet"
PAGE = ROOT / "docs" / "interpretability_study.md"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with small images."""
    folder = tmp_path_factory.mktemp("data")
    write_images(folder)
    return folder


@pytest.fixture(scope="module")
def whole(data: Path) -> Iterator[tuple[Study, pd.DataFrame]]:
    """A study that nothing disturbed, and its cells."""
    study = tiny_study(data, data / "whole")
    yield study, study.run(study.units())


def test_every_kind_has_every_schedule_and_zeros_are_counted_at_the_end(whole: tuple[Study, pd.DataFrame]) -> None:
    cells = whole[1]
    rows = pruned(cells, "tiny").set_index(["kind", "schedule"])
    assert set(rows.index) == {(kind, schedule) for kind in KINDS[:-1] for schedule in PROTOCOL.schedules}
    assert set(cells.loc[cells["kind"] == CONTROL, "schedule"]) == set(CONTROLS)
    epochs = {schedule: set(rows.xs(schedule, level="schedule")["epochs"]) for schedule in PROTOCOL.schedules}
    assert epochs == {AS_CUT: {0}, ONE_SHOT: {2}, EQUAL: {2}, UNEQUAL: {4}}
    for (kind, schedule), row in rows.iterrows():
        assert row["cut"] == pytest.approx(0.5, abs=0.06)
        if kind == FREE and schedule != AS_CUT:
            assert row["zeros"] < 0.1  # nothing holds them
        else:
            assert row["zeros"] == row["cut"]


def test_units_that_are_gone_are_left_out_and_what_that_does_is_told(whole: tuple[Study, pd.DataFrame]) -> None:
    cells = whole[1]
    assert (cells["units"] == 8 + 16 + 32).all()
    for _, row in pruned(cells, "tiny").query("kind == @STRUCTURED").iterrows():
        left = row["units"] - row["gone"]
        assert row["gone"] >= 28
        assert row["mis_all"] == pytest.approx((left * row["mis"] + row["gone"] * 0.5) / row["units"], abs=1e-5)
    before = control(cells, "tiny", UNPRUNED).iloc[0]
    assert before["gone"] == 0 and before["mis"] == before["mis_before"] == before["mis_all"]


def test_controls_say_what_nothing_looks_like(whole: tuple[Study, pd.DataFrame]) -> None:
    cells = whole[1]
    assert control(cells, "tiny", UNPRUNED)["accuracy"].iloc[0] > 0.9
    assert 0 <= control(cells, "tiny", UNTRAINED)["accuracy"].iloc[0] <= 1
    assert ((cells["shuffled"] - 0.5).abs() < 4.5 * cells["shuffled_error"]).all()


@pytest.mark.whole
def test_a_run_that_is_killed_and_goes_on_ends_with_the_same_file(
    whole: tuple[Study, pd.DataFrame], data: Path
) -> None:
    study = tiny_study(data, data / "killed")
    kill_after_a_unit("tests.research.studies.tiny_readable_study", data, study.out)
    assert not (study.out / CELLS).exists()
    study.run(study.units())
    assert (study.out / CELLS).read_bytes() == (whole[0].out / CELLS).read_bytes()


def test_units_are_asked_for_and_settings_are_kept(whole: tuple[Study, pd.DataFrame], data: Path) -> None:
    study = whole[0]
    assert [unit.name for unit in study.units(["kind=structured"])] == ["tiny/0/structured/0.5"]
    assert [unit.name for unit in study.units([f"kind={FREE}"])] == ["tiny/0/connection-not-held/0.5"]
    with pytest.raises(ValueError, match="--only: no network 'tony'"):
        study.units(["network=tony"])
    with pytest.raises(ValueError, match="made under other settings"):
        Study(data, study.out, replace(PROTOCOL, epochs=3)).store()
    with pytest.raises(ValueError, match=r"train.parquet has 120 rows, and 248 are asked for"):
        Study(data, data / "other", replace(PROTOCOL, train=200)).bench("tiny", 0)
    with pytest.raises(FileNotFoundError, match=r"cifar10/ with train.parquet"):
        Study(data / "nowhere", data / "other", PROTOCOL).bench("tiny", 0)


def test_results_are_written_small_and_read_back(whole: tuple[Study, pd.DataFrame], tmp_path: Path) -> None:
    study, cells = whole
    write_results(study.out, tmp_path / "results.parquet")
    read = read_results(tmp_path / "results.parquet")
    assert len(read) == len(cells) and set(read["kind"]) == set(cells["kind"])
    np.testing.assert_allclose(read["mis"], cells["mis"], atol=1e-6)


def test_results_of_several_runs_stand_together_where_networks_and_seeds_are_whole(
    whole: tuple[Study, pd.DataFrame], tmp_path: Path
) -> None:
    study, cells = whole
    path = tmp_path / "results.parquet"
    write_results(study.out, path)
    other = read_results(path)
    protocol = other.attrs[PROTOCOL_KEY]
    other["seed"], other["accuracy"] = 7, 0.25
    same_seed = other.assign(seed=0)
    for held, there in ((other, {0, 7}), (same_seed, {0})):
        held.attrs = {PROTOCOL_KEY: protocol}
        held.to_parquet(path)
        write_results(study.out, path)
        read = read_results(path)
        assert set(read["seed"]) == there and len(read) == len(cells) * len(there)
        assert (read.loc[read["seed"] == 7, "accuracy"] == 0.25).all()
        assert not (read.loc[read["seed"] == 0, "accuracy"] == 0.25).all()
    more = read_results(path).assign(rate=0.9)  # of the same base network, for its unpruned figures are the same
    more.loc[more["kind"] == CONTROL, "rate"] = 0.0
    more.attrs = {PROTOCOL_KEY: protocol}
    more.to_parquet(path)
    write_results(study.out, path)
    read = read_results(path)
    assert set(read["rate"]) == {0.0, 0.5, 0.9} and len(read) == len(cells) + (more["kind"] != CONTROL).sum()
    other.attrs = {PROTOCOL_KEY: {**protocol, "epochs": 99}}
    other.to_parquet(path)
    write_results(study.out, path)
    assert set(read_results(path)["seed"]) == {0}


def test_the_page_says_what_is_missing(whole: tuple[Study, pd.DataFrame]) -> None:
    cells = whole[1].assign(network="vit")
    text = page_text(cells[cells["kind"] != STRUCTURED], PROTOCOL, [])
    assert "A small vision transformer, seed 0 without structured 0.5; A text classifier, seed 0." in text


def test_seeds_that_came_out_the_same_are_drawn(whole: tuple[Study, pd.DataFrame], tmp_path: Path) -> None:
    seeds = [whole[1].assign(seed=seed, accuracy=0.1) for seed in range(3)]  # whose mean is above 0.1
    write_page(pd.concat(seeds), tmp_path / "page.md", PROTOCOL)
    assert (tmp_path / "figures" / "interpretability-rates-tiny.png").exists()


def test_there_is_no_page_without_the_network_that_others_are_compared_with(
    whole: tuple[Study, pd.DataFrame], tmp_path: Path
) -> None:
    cells = pruned(whole[1], "tiny")
    assert "no page: the controls of no network" in write_page(cells, tmp_path / "page.md", PROTOCOL)
    assert not list(tmp_path.iterdir())
    cells = pd.concat([whole[1], cells.assign(network="vit")])
    write_page(cells, tmp_path / "page.md", PROTOCOL)
    assert "## A small vision transformer" not in (tmp_path / "page.md").read_text()


def test_the_program_makes_the_page_of_a_finished_run(
    whole: tuple[Study, pd.DataFrame],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = ["--results", str(tmp_path / "results.parquet"), "--page", str(tmp_path / "page.md")]
    assert program(monkeypatch, "--report", "--cells", str(whole[0].out), *places) == 0
    assert f"written to {tmp_path / 'page.md'}" in capsys.readouterr().out
    text = (tmp_path / "page.md").read_text()
    assert "**Not run yet**: GoogLeNet, seed 0; A small vision transformer, seed 0; A text classifier, seed 0." in text
    assert "GoogLeNet of 0.25 times its channels, 1 seeds" in text and "N = 4 tasks of K = 3 references" in text
    assert program(monkeypatch, "--out", str(tmp_path)) == 2
    assert "--data is missing: the folder with cifar10/ and sst2/" in capsys.readouterr().err
    assert program(monkeypatch, "--data", str(tmp_path), "--processes", "0") == 2
    assert "--processes must be at least 1, got 0" in capsys.readouterr().err


def program(monkeypatch: pytest.MonkeyPatch, *options: str) -> int:
    """Calls scripts/interpretability_study.py; gives its exit code."""
    monkeypatch.setattr(sys, "argv", ["interpretability_study.py", *options])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "scripts" / "interpretability_study.py"), run_name="__main__")
    return int(str(ended.value.code))


@pytest.mark.parametrize(
    "first",
    ["runpy.run_path('scripts/interpretability_study.py')", "importlib.import_module('research.studies.sharing')"],
)
def test_torchvision_is_seen_to_before_transformers_imports_it(first: str) -> None:
    """In the program, and in a process that it shares units with, which reads the function that it calls first."""
    code = f"import importlib, runpy, sys; {first}; print(*sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    imported = ended.stdout.split()
    assert imported.index("research.studies.interpretability.googlenet") < imported.index("transformers")


@pytest.mark.skipif(not RESULTS.exists(), reason="no cells are stored")
def test_the_page_of_the_documentation_is_that_of_the_stored_cells() -> None:
    cells = read_results(RESULTS)
    figures = [path.stem for path in (PAGE.parent / "figures").glob("interpretability-*.png")]
    sections = [path.read_text(encoding="utf-8").strip() for path in sorted(RESULTS.parent.glob("units/*.md"))]
    protocol = Protocol.of(cells.attrs[PROTOCOL_KEY])
    assert PAGE.read_text(encoding="utf-8") == page_text(cells, protocol, figures, sections)


def test_a_unit_is_shown_before_and_after(whole: tuple[Study, pd.DataFrame], tmp_path: Path) -> None:
    bench = whole[0].bench("tiny", 0)
    name, before, after = look(bench, STRUCTURED, 0.5, AS_CUT)
    assert before.varies and after.varies
    most, least = before.ends(9)
    assert before.activations[most[0]] == before.activations.max()
    assert before.activations[least[0]] == before.activations.min()
    text = section(bench, name, (before, after), tmp_path)
    assert f"MIS {before.mis:.3f}" in text and name in text
    assert (tmp_path / "interpretability-unit-tiny.png").stat().st_size > 5_000
    with pytest.raises(ValueError, match=r"no unit '0:99'. .*There are 56, e.g. 0:0"):
        look(bench, STRUCTURED, 0.5, AS_CUT, "0:99")
