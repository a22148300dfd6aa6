"""The quality benchmark: suite files, resumable runs, and statistics that are those of scipy and scikit-posthocs."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scikit_posthocs
import yaml
from scipy import stats

from hf_mabprune.config import check
from hf_mabprune.criteria import CRITERIA
from hf_mabprune.session import load_model
from hf_mabprune.tasks.lookup import build_task
from hf_mabprune.tasks.scores import Scores
from research.benchmarks import quality, quality_report, statistics
from research.benchmarks.meter import Meter
from research.benchmarks.quality import constant_answer, retained
from research.benchmarks.results import Results
from research.benchmarks.suite import Suite, read_suite
from tests.criteria.by_hand import case
from tests.seeds import moved

ROOT = Path(__file__).parents[1]
QUICKSTART = "configs/quickstart.yaml"
SMALL = {"evaluation_examples": 32, "calibration_examples": 16, "batch_size": 8, "max_length": 32}
SUITE: dict[str, Any] = {
    "runs": {"first": {"config": QUICKSTART, "task": SMALL}, "second": {"config": QUICKSTART, "task": SMALL}},
    "targets": [{"heads": [0.25, 0.5]}],
    "methods": {
        "magnitude": {"criterion": "magnitude"},
        "sweep": {"policy": "sweep", "search": {"rounds": 1, "pulls_per_arm": 1}},
        "evolution": {"control": "evolution", "sweeps": 0.1},
    },
    "compensations": [None, "mask_tuning"],
    "planned": [{"method": "sweep", "against": "magnitude"}],
}


@pytest.fixture(autouse=True)
def in_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def write(folder: Path, content: Any, name: str = "suite.yaml") -> str:
    path = folder / name
    path.write_text(yaml.safe_dump(content))
    return str(path)


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


def test_an_interrupted_run_goes_on_with_the_cells_that_are_missing(measured: tuple[Suite, Path, list[int]]) -> None:
    suite, out, added = measured
    rows = pd.read_parquet(out)
    assert added == [5, 19] and len(rows) == 2 * 2 * 3 * 2
    measures = ["value", "loss", "mean_kl", "parameters", "kept", "forward_tokens", "backward_tokens"]
    rows = rows.sort_values(["target", "method", "compensation"])
    first, second = (rows[rows["task"] == task] for task in suite.runs)
    # The tasks are the same but for their names, and only the first was interrupted.
    pd.testing.assert_frame_equal(first[measures].reset_index(drop=True), second[measures].reset_index(drop=True))
    assert (first["plan"] == suite.plan()).all()


def test_cells_that_are_there_load_no_model(
    measured: tuple[Suite, Path, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    suite, out, _ = measured
    monkeypatch.setattr(quality, "load_model", lambda *_: pytest.fail("a model was loaded"))
    before = out.read_bytes()
    quality.run(suite, suite.cells(), out)
    assert out.read_bytes() == before


def test_rows_say_what_was_kept_and_what_it_cost(measured: tuple[Suite, Path, list[int]]) -> None:
    rows = pd.read_parquet(measured[1]).set_index(["task", "target", "method", "compensation"]).sort_index()
    magnitude, sweep = (rows.loc[("first", "heads-0.5", method, "none")] for method in ("magnitude", "sweep"))
    for row in (magnitude, sweep):
        kept = yaml.safe_load(row["kept"])
        assert sum(kept["head"].values()) == 16  # of 4 layers of 8
        assert row["retained"] == retained(row["value"], row["dense"], row["chance"], "accuracy")
    assert magnitude["parameters"] == sweep["parameters"] < magnitude["dense_parameters"]
    assert magnitude["forward_tokens"] == magnitude["backward_tokens"] == magnitude["pulls"] == 0  # weights alone
    assert sweep["pulls"] == 32 and sweep["forward_tokens"] > 0
    assert (rows.xs("mask_tuning", level=3)["compensation_tokens"] > 0).all()
    one_search = rows.loc["second"].xs("sweep", level=1)["search_seconds"]
    assert one_search.nunique() == 1 and len(one_search) == 4  # two sizes, with and without a refit


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


def test_other_settings_are_refused_unless_redone(measured: tuple[Suite, Path, list[int]], tmp_path: Path) -> None:
    _, out, _ = measured
    changed = read_suite(write(tmp_path, SUITE), overrides=["--block_size", "8"])
    with pytest.raises(ValueError, match=r"has cell first / heads-0.25 / evolution / none / 0 with other settings"):
        quality.run(changed, changed.cells(["task=first"]), out)


def test_the_report_comes_from_the_file_alone(
    measured: tuple[Suite, Path, list[int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite, out, _ = measured
    monkeypatch.setattr(quality, "load_model", lambda *_: pytest.fail("a model was loaded"))
    report = quality_report.read_report(suite, suite.cells(), out)
    assert "24 of 24 cells" in report.text and "before all 24 cells" in report.text
    assert "magnitude + mask_tuning" in report.text
    report.save(tmp_path / "report")
    names = {path.name for path in (tmp_path / "report").iterdir()}
    assert {"report.md", "pareto_first.png", "pareto_second.png", "rows.csv"} <= names
    replanned = suite.model_copy(update={"margin": 0.5})
    text = quality_report.read_report(replanned, replanned.cells(["task=first"]), out).text
    assert "before 0 of 12 cells only" in text


def rows_of(scores: dict[str, list[float]], **columns: Any) -> pd.DataFrame:
    """Rows of methods -> a score for each data set, at two targets and two seeds around it."""
    lines = []
    for method, values in scores.items():
        for task, value in enumerate(values):
            for at, step in ((0.5, 0.0), (0.7, -0.1)):
                for seed, noise in ((0, -0.01), (1, 0.01)):
                    line = {"task": f"t{task}", "target": f"heads-{at}", "family": "heads", "sparsity": at}
                    line |= {"method": method, "compensation": "none", "seed": seed, "metric": "accuracy"}
                    score = value + step + noise
                    line |= {"retained": score, "mean_kl": 1 - score, "value": score, "dense": 1.0, "chance": 0.5}
                    line |= {"model": "m", "dense_loss": 0.1, "parameters": 100 * (1 - at), "plan": ""}
                    line |= {"greater_is_better": True}
                    line |= {"search_seconds": 1.0, "pulls": 1, "forward_tokens": 1, "backward_tokens": 1}
                    lines.append(line | columns)
    return pd.DataFrame(lines)


RNG = np.random.default_rng(moved(0))
SCORES = {name: list(RNG.normal(mean, 0.05, 9)) for name, mean in (("a", 0.8), ("b", 0.75), ("c", 0.7), ("d", 0.6))}


def test_friedman_and_nemenyi_are_those_of_the_libraries() -> None:
    table = statistics.score_table(rows_of(SCORES), "retained")
    expected = np.array(list(SCORES.values())).T - 0.05  # the mean over targets and seeds
    np.testing.assert_allclose(table, expected)
    ranks = statistics.rank_table(table, greater_is_better=True)
    np.testing.assert_array_equal(ranks, stats.rankdata(-expected, axis=1))
    found = statistics.friedman(table)
    assert found.chi_square == stats.friedmanchisquare(*table.to_numpy().T).statistic
    # Iman and Davenport's F is that of a two-way analysis of variance of the ranks.
    squares = 9 * ((ranks.mean() - 2.5) ** 2).sum()
    rest = ((ranks - ranks.mean()) ** 2).to_numpy().sum()  # rows of ranks all have the same mean
    assert found.f == pytest.approx((squares / 3) / (rest / 24))
    assert found.p == pytest.approx(stats.f.sf(found.f, 3, 24))
    assert found.difference == pytest.approx(2.569 * np.sqrt(4 * 5 / (6 * 9)), rel=1e-3)  # Demsar 2006, table 5
    np.testing.assert_allclose(statistics.nemenyi(table), scikit_posthocs.posthoc_nemenyi_friedman(table.to_numpy()))


def test_few_data_sets_or_methods_get_no_test() -> None:
    with pytest.raises(ValueError, match="at least 3 methods and 2 data sets, got 2 and 9"):
        statistics.friedman(statistics.score_table(rows_of({name: SCORES[name] for name in "ab"}), "retained"))


def planned(*pairs: tuple[str, str, str]) -> list[Any]:
    given = [{"method": one, "against": other, "claim": claim} for one, other, claim in pairs]
    methods = {name: {"criterion": "random"} for name in "abcd"}
    return list(Suite.model_validate({**SUITE, "methods": methods, "planned": given}).planned)


def test_planned_comparisons_are_wilcoxon_with_holm() -> None:
    pairs = planned(("a", "b", "better"), ("a", "d", "better"), ("b", "a", "not_worse"))
    found = statistics.compare_planned(rows_of(SCORES), pairs, "retained", margin=0.02)
    scores = {name: np.array(values) for name, values in SCORES.items()}
    raw = [stats.wilcoxon(scores["a"] - scores[other]).pvalue for other in "bdb"]
    np.testing.assert_allclose(found["p"], raw)
    order = np.argsort(raw[:2], kind="stable")
    holm = np.maximum.accumulate(np.array(raw)[order] * [2, 1]).clip(max=1)
    np.testing.assert_allclose(found["holm"].to_numpy()[order], holm)
    assert np.isnan(found["holm"][2]), "a claim that no p-value decides"
    gains = scores["a"] - scores["b"]
    assert found["difference"][0] == pytest.approx(gains.mean())
    assert (found["won"][0], found["lost"][0]) == (2 * (gains > 0).sum(), 2 * (gains < 0).sum())  # at two targets
    assert found["worse"][2] == 2 * (gains > 0.02).sum() and not found["holds"][2]
    assert found["holds"][1]


def test_the_divergence_is_better_where_it_is_lower() -> None:
    found = statistics.compare_planned(rows_of(SCORES), planned(("a", "d", "better")), "mean_kl", margin=0.02)
    assert found["difference"][0] > 0 and found["holds"][0]


def test_pairs_without_rows_are_left_open() -> None:
    found = statistics.compare_planned(rows_of({"a": SCORES["a"]}), planned(("a", "b", "better")), "retained", 0.02)
    assert found["holds"][0] is None


def test_equal_methods_are_no_evidence() -> None:
    same = rows_of({"a": SCORES["a"], "b": SCORES["a"]})
    found = statistics.compare_planned(same, planned(("a", "b", "better")), "retained", 0.02)
    assert found["p"][0] == 1.0 and found["tied"][0] == 18 and not found["holds"][0]


def test_only_points_that_all_methods_have_are_averaged() -> None:
    rows = rows_of(SCORES)
    partial = rows[~((rows["method"] == "a") & (rows["target"] == "heads-0.7"))]
    table = statistics.score_table(partial, "retained")
    np.testing.assert_allclose(table["b"], SCORES["b"])


def test_the_area_is_the_mean_height() -> None:
    areas = statistics.area_under_curve(rows_of(SCORES)).set_index(["task", "method"])["area"]
    assert areas["t3", "b"] == pytest.approx(SCORES["b"][3] - 0.05)


def test_data_sets_near_chance_are_marked_and_left_out(tmp_path: Path) -> None:
    rows = rows_of(SCORES)
    rows.loc[rows["task"] == "t4", "chance"] = 0.96
    language = ["metric", "greater_is_better", "dense", "chance"]
    rows.loc[rows["task"] == "t5", language] = ["perplexity", False, 60.0, 62.0]
    rows.loc[rows["task"] == "t6", language] = ["perplexity", False, 4000.0, 200.0]  # worse than knowing nothing
    rows.loc[rows["task"] == "t7", language] = ["perplexity", False, 60.0, 600.0]
    weak = statistics.near_chance(rows, 0.05)
    assert list(weak[weak].index) == ["t4", "t5", "t6"]
    methods = {name: {"criterion": "random"} for name in SCORES}
    suite = Suite.model_validate({**SUITE, "methods": methods, "planned": []})
    report = quality_report.make_report(suite, rows, len(rows))
    assert "t4: accuracy, dense 1 (near chance)" in report.text
    assert list(report.tables["ranks_retained_none"].index) == [f"t{task}" for task in (0, 1, 2, 3, 7, 8)]
    report.save(tmp_path)
    assert (tmp_path / "ranks_retained_none.png").stat().st_size > 0


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
    scores = Scores(np.ones(4), np.ones(4, dtype=np.int64), np.zeros(4, dtype=np.int64), reference)
    assert constant_answer(task, scores, reference) == 0.75


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": {}}, r"unknown key 'method'\. Did you mean 'methods'\?"),
        ({"runs": {}}, r"runs: Dictionary should have at least 1 item"),
        ({"runs": {"first": {}}}, r"missing key 'runs.first.config'"),
        ({"seeds": [0, 0]}, r"seeds must not repeat, got 0, 0"),
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


def test_an_overlay_replaces_data_sets_whole(tmp_path: Path) -> None:
    files = {"train": "a.parquet"}
    local = {"runs": {"first": {"task": {"dataset": {"path": "parquet", "data_files": files}, "batch_size": 4}}}}
    hub = {"runs": {"first": {"task": {"dataset": {"path": "nyu-mll/glue", "name": "cola"}}}}}
    paths = write(tmp_path, SUITE), [write(tmp_path, hub, "hub.yaml"), write(tmp_path, local, "local.yaml")]
    suite = read_suite(*paths, overrides=["--runs.first.model.name", "somewhere", "--seeds=[3]"])
    settings = suite.settings("first")
    assert settings.task.dataset.model_dump(exclude_none=True) == {"path": "parquet", "data_files": files}
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
