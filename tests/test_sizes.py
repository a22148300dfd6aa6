"""Several sizes from one search: lists of targets, `cut`, `plan` and `evaluate`."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from datasets import Dataset
from transformers import AutoModelForCausalLM

from hf_mabprune import load_pruned
from hf_mabprune.cli.commands import main
from hf_mabprune.config import PruneConfig, TargetConfig, check
from hf_mabprune.evaluation.report import Report
from hf_mabprune.pipeline import prune_from_config
from hf_mabprune.preview import plan_run
from hf_mabprune.selection.selected import Selection
from hf_mabprune.selection.target import make_plan
from tests.seeds import moved
from tests.test_pipeline import sentences, settings_for
from tests.test_selection import table
from tests.tiny_models import tiny_model

SIZES = {"neurons": [0.25, 0.5], "heads": [0.25, 0.5]}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sizes")


@pytest.fixture(scope="module")
def data(place: Path) -> dict[str, str]:
    paths = {split: str(place / f"{split}.parquet") for split in ("train", "validation", "test")}
    for seed, path in enumerate(paths.values()):
        Dataset.from_dict(sentences(48, seed)).to_parquet(path)
    return paths


@pytest.fixture(scope="module")
def run(place: Path, data: dict[str, str]) -> Path:
    """A finished run with two sizes."""
    settings = settings_for(place, data, "bert", prune={"target": SIZES}, output={"dir": str(place / "run")})
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
    settings = settings_for(place, data, "bert", prune=alone, output={"dir": str(place / "alone")})
    prune_from_config(settings)
    assert kept(place / "alone") == kept(run / "neurons-0.5-heads-0.5")
    folders = (place / "alone", run / "neurons-0.5-heads-0.5")
    first, second = ((folder / "model.safetensors").read_bytes() for folder in folders)
    assert first == second


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
    result = prune_from_config(settings_for(place / "llama", data, "llama", prune={"layout": "uniform"}))
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


@pytest.mark.parametrize("target", [{"parameters": 0.3}, {"macs": 0.4}, {"neurons": 0.5, "heads": 0.25}])
@pytest.mark.parametrize("layout", ["uniform", "per_layer"])
def test_cutting_along_the_order_gives_what_the_search_removed(target: dict[str, float], layout: Any) -> None:
    arms = table(neurons=[[8] * 6] * 2, heads=[[1] * 4] * 2, parameters=(3, 5), macs=(7, 2))
    totals = {"parameters": 2 * int(arms.parameters.sum()), "macs": 2 * int(arms.macs.sum())}
    plan = make_plan(arms, TargetConfig(**target), totals, layout, {"neuron": 1, "head": 1})
    rng = np.random.default_rng(moved(0))
    kept, order = np.ones(len(arms), dtype=bool), []
    for progress in (0.3, 0.7, 1.0):
        kept, removed = plan.choose(rng.normal(size=len(arms)) - 1, kept, progress)
        order.append(removed)
    order.append(np.flatnonzero(kept))
    assert np.array_equal(Selection.along(plan, np.concatenate(order), 1, 1).kept, kept)


def test_plan_names_arms_layouts_targets_time_and_memory(
    run: Path, place: Path, data: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "--config", str(place / "run.yaml"), "--output.dir", str(place / "none")]) == 0
    said = capsys.readouterr().out
    assert "arms: 12 of kind neuron, up to 8 FFN neurons each" in said
    assert "layout per_layer: loads after import hf_mabprune" in said
    assert "layout uniform: not possible: a stock bert config cannot say" in said
    assert "target neurons 0.5, heads 0.5: within reach, removes 48 of 96 neurons, 4 of 8 heads" in said
    assert re.search(r"without pulls \(--search.criterion NAME\): kfac_obs \d+k tokens", said)
    assert not (place / "none").exists() and not (place / "none.state").exists()


def test_plan_counts_the_memory_of_refits(place: Path, data: dict[str, str]) -> None:
    def memory(compensation: str | None, rule: str) -> int:
        rounds = None if rule == "refit" else 2
        changes = {"search": {"rule": rule, "rounds": rounds}, "compensation": compensation}
        return plan_run(settings_for(place / "memory", data, "bert", **changes)).memory_bytes

    weights = tiny_model("bert", "AutoModelForSequenceClassification").get_memory_footprint()
    alone, with_gradients = memory(None, "single"), memory(None, "interactions")
    assert 2 * weights < alone < with_gradients < memory("least_squares", "refit")


def test_targets_are_within_reach_exactly_as_far_as_plan_says(place: Path, data: dict[str, str]) -> None:
    def settings(**prune: Any) -> PruneConfig:
        return settings_for(place / "llama", data, "llama", prune=prune)

    reach = plan_run(settings(layout="auto")).reach
    assert set(reach) == {"uniform", "per_layer"}
    for layout, largest in reach.items():
        assert set(largest) == {"parameters", "macs", "neurons", "heads"}
        for name, fraction in largest.items():
            asked = {"layout": layout, "arms": ["neuron", "head"]}
            assert plan_run(settings(target={name: fraction - 1e-9}, **asked)).pulls > 0
            if name in ("parameters", "macs"):
                with pytest.raises(ValueError, match="cannot be met"):
                    plan_run(settings(target={name: fraction + 0.02}, **asked))


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
