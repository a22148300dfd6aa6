"""The quality benchmark: suite files, resumable runs, and statistics that are those of scipy and scikit-posthocs."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from hf_mabprune.config import check
from hf_mabprune.criteria import CRITERIA
from hf_mabprune.session import load_model
from hf_mabprune.tasks.lookup import build_task
from hf_mabprune.tasks.scores import Scores
from research.benchmarks import quality, quality_report
from research.benchmarks.meter import Meter
from research.benchmarks.quality import constant_answer, retained
from research.benchmarks.results import Results
from research.benchmarks.suite import Suite, read_suite
from tests.criteria.by_hand import case
from tests.research.suites import QUICKSTART, SUITE, write
from tests.watched import Watched

ROOT = Path(__file__).parents[2]


class Stop(Exception):
    """An interruption."""


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Suite, Path, list[int]]:
    """A run of all cells, interrupted on the way; the suite, its file, and how many rows each launch added."""
    folder = tmp_path_factory.mktemp("quality")
    out, added = folder / "rows.parquet", [0, 0]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        suite = read_suite(write(folder, SUITE))
        add = Results.add

        def interrupted(results: Results, row: dict[str, Any]) -> None:
            if added[0] == 5:
                raise Stop
            added[0] += 1
            add(results, row)

        def counted(results: Results, row: dict[str, Any]) -> None:
            added[1] += 1
            add(results, row)

        patch.setattr(Results, "add", interrupted)
        with pytest.raises(Stop):
            quality.run(suite, suite.cells(), out)
        patch.setattr(Results, "add", counted)
        quality.run(suite, suite.cells(), out)
    return suite, out, added


@pytest.mark.whole
def test_a_suite_shows_which_cell_is_under_way_of_how_many(
    tmp_path: Path, shown: Watched, capsys: pytest.CaptureFixture[str]
) -> None:
    methods = {name: SUITE["methods"][name] for name in ("magnitude", "evolution")}
    only = {"targets": [{"heads": 0.25}], "methods": methods, "compensations": [None], "planned": []}
    suite = read_suite(write(tmp_path, SUITE | only | {"seeds": [3]}))
    cells = [cell for cell in suite.cells() if cell.task == "first"]
    quality.run(suite, cells, tmp_path / "rows.parquet")
    work = shown.last("benchmark")
    assert work.done == work.total == len(cells) == 3
    assert work.note == str(cells[-1])
    assert {"statistics", "search"} <= set(shown.names())
    assert f"[3/3] {cells[-1]}: accuracy" in capsys.readouterr().out


@pytest.mark.whole
def test_an_interrupted_run_goes_on_with_the_cells_that_are_missing(measured: tuple[Suite, Path, list[int]]) -> None:
    suite, out, added = measured
    rows = pd.read_parquet(out)
    assert added == [5, 35] and len(rows) == 2 * 2 * (2 + 2 + 1) * 2
    measures = ["value", "loss", "mean_kl", "held_out_kl", "parameters", "kept", "forward_tokens", "backward_tokens"]
    rows = rows.sort_values(["target", "method", "compensation", "allocation"])
    first, second = (rows[rows["task"] == task] for task in suite.runs)
    # The tasks are the same but for their names, and only the first was interrupted.
    pd.testing.assert_frame_equal(first[measures].reset_index(drop=True), second[measures].reset_index(drop=True))
    assert (first["plan"] == suite.plan()).all()


@pytest.mark.whole
def test_cells_that_are_there_load_no_model(
    measured: tuple[Suite, Path, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    suite, out, _ = measured
    monkeypatch.setattr(quality, "load_model", lambda *_: pytest.fail("a model was loaded"))
    before = out.read_bytes()
    quality.run(suite, suite.cells(), out)
    assert out.read_bytes() == before


@pytest.mark.whole
def test_rows_say_what_was_kept_and_what_it_cost(measured: tuple[Suite, Path, list[int]]) -> None:
    rows = (
        pd.read_parquet(measured[1]).set_index(["task", "target", "method", "compensation", "allocation"]).sort_index()
    )
    magnitude, sweep = (rows.loc[("first", "heads-0.5", method, "none", "own")] for method in ("magnitude", "sweep"))
    for row in (magnitude, sweep):
        kept = yaml.safe_load(row["kept"])
        assert sum(count for site, count in kept.items() if "attention" in site) == 16  # of 4 layers of 8
        assert row["retained"] == retained(row["value"], row["dense"], row["chance"], "accuracy")
    assert magnitude["parameters"] == sweep["parameters"] < magnitude["dense_parameters"]
    assert magnitude["forward_tokens"] == magnitude["backward_tokens"] == magnitude["pulls"] == 0  # weights alone
    assert sweep["pulls"] == 32 and sweep["forward_tokens"] > 0
    assert (rows.xs("mask_tuning", level=3)["compensation_tokens"] > 0).all()
    one_search = rows.loc["second"].xs("sweep", level=1)["search_seconds"]
    assert one_search.nunique() == 1 and len(one_search) == 8  # two sizes and allocations, with and without a refit


@pytest.mark.whole
def test_both_allocations_of_a_method_have_one_size_and_one_is_equal_in_every_layer(
    measured: tuple[Suite, Path, list[int]],
) -> None:
    rows = pd.read_parquet(measured[1]).set_index(["task", "method", "compensation", "target", "allocation"])
    for method in ("magnitude", "sweep"):
        own, equal = (rows.loc[("first", method, "none", "heads-0.5", name)] for name in ("own", "equal"))
        heads = [count for site, count in yaml.safe_load(equal["kept"]).items() if "attention" in site]
        assert heads == [4, 4, 4, 4]
        assert own["parameters"] == equal["parameters"]
        assert {own["held_out_kl"], equal["held_out_kl"]}.isdisjoint({own["mean_kl"], equal["mean_kl"]})
    assert set(rows.loc[("first", "evolution")].index.get_level_values("allocation")) == {"own"}


@pytest.mark.whole
def test_the_report_counts_the_allocation_that_is_nearer_to_the_dense_model_on_held_out_data(
    measured: tuple[Suite, Path, list[int]],
) -> None:
    suite, out, _ = measured
    rows = pd.read_parquet(out).query("task == 'first' and compensation == 'none'").reset_index(drop=True)
    rows["held_out_kl"] = np.where(rows["allocation"] == "equal", 0.1, 0.2)
    rows["mean_kl"] = np.arange(1.0, 1 + len(rows))
    text = quality_report.make_report(suite, rows, len(rows)).text
    assert re.search(r"\| sweep +\| 0 +\| 2 +\|", text)
    own, equal = (rows[(rows["method"] == "sweep") & (rows["allocation"] == name)] for name in ("own", "equal"))
    both = [f"{one:g} / {other:g} equal" for one, other in zip(own["mean_kl"], equal["mean_kl"], strict=True)]
    for shown in (both, [f"{value:g}" for value in equal["mean_kl"]]):
        assert re.search(r"\| sweep +\| " + r" +\| ".join(shown) + r" +\|", text)


def test_rows_of_one_allocation_are_not_mixed_with_others(tmp_path: Path) -> None:
    old = {"task": "first", "target": "heads-0.25", "method": "magnitude", "compensation": "none", "seed": 0}
    pd.DataFrame([old | {"settings": "", "retained": 1.0}]).to_parquet(tmp_path / "rows.parquet")
    suite = read_suite(write(tmp_path, SUITE))
    for reads in (quality.run, quality_report.read_report):
        with pytest.raises(ValueError, match=r"rows.parquet has rows from before methods had two allocations.*--out"):
            reads(suite, suite.cells(), tmp_path / "rows.parquet")


@pytest.mark.parametrize(
    ("criterion", "passes"),
    [("magnitude", (0, 0)), ("wanda_sp", (1, 0)), ("taylor", (1, 1)), ("kfac_obs", (1, 1))],  # of two classes
)
def test_a_criterion_is_charged_for_the_statistics_that_it_reads(criterion: str, passes: tuple[int, int]) -> None:
    meter = Meter(case("bert", 16))
    for _ in range(2):  # the second time all are there
        meter.start()
        CRITERIA.get(criterion)().scores(meter)
        assert meter.passes() == passes and meter.stop() > 0


@pytest.mark.whole
def test_other_settings_are_refused_unless_redone(measured: tuple[Suite, Path, list[int]], tmp_path: Path) -> None:
    _, out, _ = measured
    changed = read_suite(write(tmp_path, SUITE), overrides=["--block_size", "8"])
    with pytest.raises(
        ValueError, match=r"has cell first / heads-0.25 / evolution / none / own / 0 with other settings"
    ):
        quality.run(changed, changed.cells(["task=first"]), out)


@pytest.mark.whole
def test_the_report_comes_from_the_file_alone(
    measured: tuple[Suite, Path, list[int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite, out, _ = measured
    monkeypatch.setattr(quality, "load_model", lambda *_: pytest.fail("a model was loaded"))
    report = quality_report.read_report(suite, suite.cells(), out)
    assert "40 of 40 cells" in report.text and "before all 40 cells" in report.text
    assert "magnitude + mask_tuning" in report.text
    report.save(tmp_path / "report")
    names = {path.name for path in (tmp_path / "report").iterdir()}
    assert {"report.md", "pareto_first.png", "pareto_second.png", "rows.csv", "allocations.csv"} <= names
    replanned = suite.model_copy(update={"margin": 0.5})
    text = quality_report.read_report(replanned, replanned.cells(["task=first"]), out).text
    assert "before 0 of 20 cells only" in text


def test_the_metric_retained_goes_from_chance_to_the_dense_model() -> None:
    assert retained(0.75, 1.0, 0.5, "accuracy") == 0.5
    assert retained(0.4, 1.0, 0.5, "accuracy") == 0.0
    assert retained(3.0, 1.0, 5.0, "mse") == 0.5
    assert retained(100.0, 10.0, 1000.0, "perplexity") == pytest.approx(0.5)
    assert retained(float("inf"), 10.0, 1000.0, "perplexity") == 0.0


def test_chance_is_the_best_constant_answer() -> None:
    settings = check(yaml.safe_load(Path(QUICKSTART).read_text()))
    model, tokenizer = load_model(settings.model, settings.task)
    task = build_task(settings.task, tokenizer, model.config, type(model).__name__)
    reference = np.array([1, 0, 1, 1])
    one_each = np.ones(4, dtype=np.int64)
    scores = Scores(np.ones(4), one_each, 0 * one_each, reference, 1.0 - reference, one_each)
    assert constant_answer(task, scores, reference) == 0.75
