"""Several sizes from one search: lists of targets, `cut` and `evaluate`."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from hf_mabprune import load_pruned
from hf_mabprune.artifacts.plots import pareto
from hf_mabprune.cli.commands import main
from hf_mabprune.config import check
from hf_mabprune.evaluation.report import Report
from hf_mabprune.pipeline import prune_from_config
from tests.problems import QUICK, settings_for

pytestmark = [pytest.mark.whole, pytest.mark.usefixtures("without_figures")]
SIZES = {"neurons": [0.25, 0.5], "heads": [0.25, 0.5]}


@pytest.fixture(scope="module")
def run(place: Path, data: dict[str, str]) -> Path:
    """A finished run with two sizes, and with figures."""
    changes = {"prune": {"target": SIZES}, "compensation": QUICK, "output": {"dir": str(place / "run")}}
    settings = settings_for(place, data, "bert", **changes)
    (place / "run.yaml").write_text(settings.to_yaml())
    prune_from_config(settings)
    return place / "run"


def kept(folder: Path) -> set[int]:
    arms = pd.read_parquet(folder / "mabprune" / "arms.parquet")
    return set(np.flatnonzero(arms["kept"]))


def test_a_list_of_targets_gives_a_folder_a_size_and_an_overview(run: Path) -> None:
    large, small = run / "neurons-0.25-heads-0.25", run / "neurons-0.5-heads-0.5"
    for folder, fraction in ((large, 0.25), (small, 0.5)):
        report = Report.from_json(folder / "mabprune" / "report.json")
        assert report.target == {"neurons": fraction, "heads": fraction}
        assert report.removed_fraction() == pytest.approx(fraction, abs=0.02)
        assert [size.name for size in report.sizes] == [large.name, small.name]
        assert report.after.parameters == sum(p.numel() for p in load_pruned(folder).parameters())
        assert (folder / "figures" / "pareto.png").exists()
        assert "figures/pareto.png" in (folder / "README.md").read_text()
        single = check(yaml.safe_load((folder / "mabprune" / "config.yaml").read_text()))
        assert single.prune.target.fractions() == report.target
    assert kept(small) < kept(large), "sizes are nested"
    overview = (run / "README.md").read_text()
    assert f"({large.name}/README.md)" in overview and "![Quality against parameters" in overview
    assert not (run / "config.json").exists(), "the folder of several sizes is no checkpoint itself"


def test_a_size_of_a_list_is_the_same_as_that_size_alone(run: Path, place: Path, data: dict[str, str]) -> None:
    alone = {"target": {"neurons": 0.5, "heads": 0.5}}
    changes = {"prune": alone, "compensation": QUICK, "output": {"dir": str(place / "alone")}}
    prune_from_config(settings_for(place, data, "bert", **changes))
    assert kept(place / "alone") == kept(run / "neurons-0.5-heads-0.5")
    folders = (place / "alone", run / "neurons-0.5-heads-0.5")
    first, second = ((folder / "model.safetensors").read_bytes() for folder in folders)
    assert first == second


def test_without_random_draws_nothing_is_shown_of_them(place: Path, data: dict[str, str]) -> None:
    output = {"dir": str(place / "no_draws"), "random_seeds": 0}
    changes = {"prune": {"target": SIZES}, "compensation": None, "output": output}
    result = prune_from_config(settings_for(place, data, "bert", **changes))
    for size in result.report.sizes:
        report = Report.from_json(place / "no_draws" / size.name / "mabprune" / "report.json")
        assert not report.random and [each.random for each in report.sizes] == [None, None]
        assert "no comparison with random draws" in (place / "no_draws" / size.name / "README.md").read_text()
        assert "random" not in result.report.table()
    panel = pareto(result.report).axes[0]
    assert {text.get_text() for text in panel.get_legend().get_texts()} == {"dense", "pruned"}


def test_cut_makes_another_size_without_pulls(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cut", str(run), "--target.neurons", "0.25", "--target.heads", "0.25"]) == 0
    said = capsys.readouterr().out
    folder = Path(f"{run}-neurons-0.25-heads-0.25")
    assert f'from_pretrained("{folder}")' in said
    assert kept(folder) == kept(run / "neurons-0.25-heads-0.25"), "the same cut as in the run itself"
    report = Report.from_json(folder / "mabprune" / "report.json")
    assert len(report.sizes) == 3, "beside the sizes that were cut before"
    first = Report.from_json(run / "neurons-0.25-heads-0.25" / "mabprune" / "report.json")
    assert (report.search.pulls, report.after.metrics) == (first.search.pulls, first.after.metrics)
    assert main(["cut", str(run), "--target.neurons", "0.25", "--target.heads", "0.25"]) == 2
    assert "exists. Choose another output.dir" in capsys.readouterr().err


def test_cut_takes_targets_of_other_kinds_and_warns_beyond_the_search(
    run: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["cut", str(run), "--target.macs", "[0.2, 0.6]", "--output.dir", str(place / "macs")]) == 0
    said = capsys.readouterr().out
    names = ("macs-0.2", "macs-0.6")
    little, much = (Report.from_json(place / "macs" / name / "mabprune" / "report.json") for name in names)
    for report, fraction in ((little, 0.2), (much, 0.6)):
        assert fraction <= 1 - report.after.macs / report.before.macs < fraction + 0.1
    beyond = "were removed by their last scores, not in context"
    assert not [warning for warning in little.warnings if beyond in warning]
    (warning,) = (warning for warning in much.warnings if beyond in warning)
    assert f"warning: {warning}" in said


def test_results_in_memory_are_cut_and_saved(place: Path, data: dict[str, str]) -> None:
    changes = {"prune": {"layout": "uniform"}, "compensation": QUICK}
    result = prune_from_config(settings_for(place / "llama", data, "llama", **changes))
    third = result.cut(target={"neurons": 0.33})
    assert "before" in third.table() and third.report.target == {"neurons": 0.33}
    third.save_pretrained(place / "third")
    again = AutoModelForCausalLM.from_pretrained(place / "third").eval()
    ids = torch.tensor([[6, 7, 8]])
    assert torch.equal(again(input_ids=ids).logits, third.model(input_ids=ids).logits)
    assert again.config.intermediate_size == 32 and again.config.num_key_value_heads == 2
    with pytest.raises(FileExistsError, match="exists"):
        third.save_pretrained(place / "third")
    with pytest.raises(ValueError, match="cut makes one size"):
        result.cut(target={"neurons": [0.25, 0.5]})
    with pytest.raises(ValueError, match="the nearest that can is"):
        result.cut(target={"parameters": 0.99})


def test_evaluate_gives_the_figures_of_the_report(run: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = run / "neurons-0.5-heads-0.5"
    assert main(["evaluate", str(checkpoint), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    after = Report.from_json(checkpoint / "mabprune" / "report.json").after
    assert found["metrics"] == after.metrics and found["loss"] == pytest.approx(after.loss)
    assert (found["parameters"], found["macs"]) == (after.parameters, after.macs)
    assert found["checkpoint_bytes"] == after.checkpoint_bytes
    assert main(["evaluate", str(place / "model"), "--config", str(place / "run.yaml")]) == 0
    before = Report.from_json(checkpoint / "mabprune" / "report.json").before
    assert f"{100 * before.metrics['accuracy']:.1f} (" in capsys.readouterr().out, "the dense model, too"
