"""The report as data, as JSON and as a table."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from hf_mabprune.evaluation.figures import ModelFigures, RandomFigures
from hf_mabprune.evaluation.report import PACKAGES, Report, installed_versions
from tests.artifacts.reports import kept_in, make_report


def figures(parameters: int, accuracy: float, loss: float) -> ModelFigures:
    return ModelFigures(
        parameters=parameters,
        ffn_parameters=parameters // 2,
        attention_parameters=parameters // 4,
        macs=84 * parameters,
        loss=loss,
        kl=0.0123,
        metrics={"accuracy": accuracy, "f1": 0.5},
        intervals={"accuracy": (accuracy - 0.01, accuracy + 0.02), "f1": (0.4, 0.6)},
        latency_ms=5.126,
        checkpoint_bytes=4 * parameters,
    )


@pytest.fixture
def report() -> Report:
    return replace(
        make_report(),
        model="bert-base-uncased",
        dataset="glue",
        before=figures(100_000_000, 0.924, 0.21),
        after=figures(70_000_000, 0.919, 0.2344),
        random=[RandomFigures(0, figures(70_000_000, 0.841, 0.45)), RandomFigures(4, figures(70_000_000, 0.85, 0.41))],
        kept=kept_in("bert", neurons=[(512, 3072), (3072, 3072)], heads=[(12, 12), (5, 12)]),
        warnings=["careful"],
        versions=installed_versions(),
    )


def rows_of(report: Report) -> dict[str, list[str]]:
    """First word of each row (two for random draws) -> the rest of its words."""
    rows = {}
    for line in report.table().splitlines():
        words = line.split()
        name = " ".join(words[:2]) if words[0] == "random" else words[0]
        rows[name] = words[len(name.split()) :]
    return rows


def test_json_round_trip(report: Report, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text(report.to_json())
    again = Report.from_json(path)
    assert again == report
    assert again.kept["neuron"]["encoder.layer.1.output.dense"] == (3072, 3072)
    assert list(again.kept["head"]) == [f"encoder.layer.{layer}.attention.output.dense" for layer in range(2)]
    assert again.before.intervals["f1"] == (0.4, 0.6)
    assert again.to_json() == report.to_json()


@pytest.mark.parametrize("change", ["extra", "missing", "figures"])
def test_reports_of_other_versions_are_refused(report: Report, tmp_path: Path, change: str) -> None:
    raw = json.loads(report.to_json())
    if change == "extra":
        raw["colour"] = "red"
    elif change == "missing":
        del raw["search"]
    else:
        raw["after"]["colour"] = "red"
    path = tmp_path / "report.json"
    path.write_text(json.dumps(raw))
    with pytest.raises(ValueError, match=r"report.json is not a report of this version of hf_mabprune"):
        Report.from_json(path)


def test_what_is_not_finite_is_null_in_the_file_and_nan_again(report: Report, tmp_path: Path) -> None:
    after = replace(report.after, loss=math.nan, kl=math.inf, metrics={"accuracy": 0.5, "f1": math.nan})
    course = [{**report.search.rounds[0], "kl": math.inf}]
    path = tmp_path / "report.json"
    path.write_text(replace(report, after=after, search=replace(report.search, rounds=course)).to_json())
    assert "NaN" not in path.read_text() and "Infinity" not in path.read_text()
    again = Report.from_json(path)
    assert math.isnan(again.after.loss) and math.isnan(again.after.metrics["f1"])
    assert again.after.kl is None and math.isnan(again.search.rounds[0]["kl"])


MISTAKES = {  # name -> what stands in the file, what comes in its place, what is said
    "not_a_number": ('"loss": 0.2344', '"loss": NaN', "NaN is no number of JSON"),
    "infinite": ('"loss": 0.2344', '"loss": 1e999', "1e999 is too large a number"),
    "a_string": ('"loss": 0.2344', '"loss": "0.2344"', "after.loss: Input should be a valid number"),
    "true": ('"seed": 7', '"seed": true', "seed: Input should be a valid integer"),
    "huge": ('"seed": 7', '"seed": 1' + "0" * 30, "seed: Input should be less than"),
    "twice": ('"seed": 7', '"seed": 7, "seed": 8', "a key occurs twice"),
    "layout": ('"layout": "per_layer"', '"layout": "both"', "layout: Input should be 'uniform' or 'per_layer'"),
    "a_path": ('"parameters": 0.3', '"../../up": 0.3', "target.../../up"),
    "long": ('"dataset": "glue"', '"dataset": "' + "x" * 10**7 + '"', "dataset: String should have at most"),
    "deep": ('"dataset": "glue"', '"dataset": ' + "[" * 5000 + "]" * 5000, "nested too deeply"),
    "half_a_letter": ('"dataset": "glue"', '"dataset": "\\ud800"', "end of hex escape"),
    "no_such_metric": ('"main_metric": "accuracy"', '"main_metric": "bleu"', "the same in all rows, 'bleu'"),
    "a_round": ('"number": 1,', '"number": 1.5,', "number must be a whole number"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_what_no_run_writes_is_refused_in_one_line(report: Report, tmp_path: Path, name: str) -> None:
    path, text = tmp_path / "report.json", report.to_json()
    old, new, said = MISTAKES[name]
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(ValueError, match=r"is not a report of this version of hf_mabprune") as caught:
        Report.from_json(path)
    assert said in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize("counts", [(3073, 3072), (-1, 3072), (0, 0)])
def test_a_layer_cannot_keep_more_than_it_had(report: Report, tmp_path: Path, counts: tuple[int, int]) -> None:
    path = tmp_path / "report.json"
    path.write_text(replace(report, kept=kept_in("bert", neurons=[counts], heads=[(12, 12)])).to_json())
    with pytest.raises(ValueError, match=r"kept"):
        Report.from_json(path)


def test_removed_fraction(report: Report) -> None:
    before = replace(report.before, ffn_parameters=600, attention_parameters=200)
    after = replace(report.after, ffn_parameters=300, attention_parameters=100)
    assert replace(report, before=before, after=after).removed_fraction() == 0.5
    after = replace(report.after, ffn_parameters=600, attention_parameters=150)
    assert replace(report, before=before, after=after).removed_fraction() == pytest.approx(50 / 800)


def test_table_has_a_row_for_every_model(report: Report) -> None:
    rows = rows_of(report)
    assert rows["before"] == ["100.0M", "8.4G", "92.4", "(91.4-94.4)", "0.210", "0.0123", "5.1", "400.0"]
    assert rows["after"] == ["70.0M", "5.9G", "91.9", "(90.9-93.9)", "0.234", "0.0123", "5.1", "280.0"]
    assert rows["random 0"][2] == "84.1"
    assert rows["random 4"][2:5] == ["85.0", "(84.0-87.0)", "0.410"]
    heading = report.table().splitlines()[0]
    assert heading.split() == ["on", "test", "params", "MACs", "accuracy", "(95%)", "loss", "KL", "ms", "MB"]
    assert len(report.table().splitlines()) == 6  # heading, rule and four models


def test_table_of_a_language_model(report: Report) -> None:
    def perplexity(value: float) -> ModelFigures:
        return replace(report.after, metrics={"perplexity": value}, intervals={"perplexity": (value - 1, value + 1)})

    report = replace(
        report, main_metric="perplexity", before=perplexity(20.0), after=perplexity(23.46),
        random=[RandomFigures(2, perplexity(1234.5))],
    )  # fmt: skip
    rows = rows_of(report)
    assert rows["after"][2:4] == ["23.5", "(22.5-24.5)"]
    assert rows["random 2"][2:4] == ["1234.5", "(1233.5-1235.5)"]


def test_table_leaves_out_what_was_not_measured(report: Report) -> None:
    bare = replace(report.after, latency_ms=None, checkpoint_bytes=None)
    rows = rows_of(replace(report, random=[RandomFigures(0, bare)]))
    assert len(rows["random 0"]) == len(rows["after"]) - 2


@pytest.mark.parametrize(
    ("count", "shown"),
    [(999, "999"), (1000, "1.0k"), (12_345, "12.3k"), (7_000_000, "7.0M"), (8 * 10**9, "8.0G"), (2 * 10**12, "2.0T")],
)
def test_counts_are_short(report: Report, count: int, shown: str) -> None:
    rows = rows_of(replace(report, before=replace(report.before, parameters=count)))
    assert rows["before"][0] == shown


def test_lines_fit_a_terminal(report: Report) -> None:
    lines = report.table().splitlines()
    assert all(len(line) <= 110 and line == line.rstrip() for line in lines)


def test_versions_are_those_installed(report: Report) -> None:
    assert list(report.versions) == list(PACKAGES)
    assert report.versions["torch"].startswith(tuple("0123456789"))


def test_random_draws_that_are_beaten_are_counted_and_those_beyond_doubt(report: Report) -> None:
    differences = [(0.02, 0.01, 0.03), (0.01, -0.01, 0.03), (-0.01, -0.03, 0.01)]
    draws = [
        RandomFigures(seed, replace(report.random[0].figures, behind=behind, kl_above=(0.1, 0.05, 0.2)))
        for seed, behind in enumerate(differences)
    ]
    assert replace(report, random=draws).against_random() == (
        "of 3 random draws, on the same examples, accuracy is better than 2 (1 by more than the 95% interval), "
        "KL lower than 3 (3 by more than the 95% interval)"
    )
    lower_is_better = replace(report, random=draws, greater_is_better=False).against_random()
    assert "accuracy is better than 1 (0 by" in lower_is_better
    assert report.against_random() == ""


def test_the_bounds_name_the_split_that_they_are_computed_on(report: Report) -> None:
    after = replace(report.after, kl_bound=0.02, changed=0.01, changed_bound=0.03)
    on_test, apart = (replace(report, after=after, certified_on=split) for split in ("test", "certification"))
    assert on_test.certificate() == (
        "with 95% confidence on data like the test split: mean KL (each example's clipped at 1 nat) at most 0.02, "
        "at most 3.0% of answers changed (1.0% were)"
    )
    assert apart.certificate().startswith("with 95% confidence on data like the certification split: ")
    assert apart.certificate().endswith("at most 3.0% of answers changed")
