"""The main job, end to end, on tiny models and local files."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from hf_mabprune import PruneResult, load_pruned, prune
from hf_mabprune.config import check
from hf_mabprune.evaluation.report import Report
from hf_mabprune.pipeline import prune_from_config
from tests.problems import sentences, settings_for
from tests.tasks.tiny_tasks import make_tokenizer
from tests.tiny_models import tiny_model

PURPOSES = ("calibration", "validation", "test")

pytestmark = [pytest.mark.whole, pytest.mark.usefixtures("without_figures")]
UNIFORM = {"arms": ["neuron"], "target": {"neurons": 0.5}, "layout": "auto", "auto_tolerance": 10.0}


@pytest.fixture(scope="module")
def finished(place: Path, data: dict[str, str]) -> tuple[PruneResult, Path]:
    """A run with per-layer sizes and figures, and its folder; nobody changes either."""
    return prune_from_config(settings_for(place, data, "bert")), place / "out"


@pytest.fixture(scope="module")
def uniform(place: Path, data: dict[str, str]) -> tuple[PruneResult, Path]:
    """A run whose layout `auto` is uniform, and its folder."""
    folder = place / "uniform"
    return prune_from_config(settings_for(place, data, "bert", prune=UNIFORM, output={"dir": str(folder)})), folder


@pytest.mark.parametrize("model_type", ["bert", "llama"])
def test_a_race_with_interactions_and_compensation(tmp_path: Path, files: dict[str, str], model_type: str) -> None:
    search = {"policy": {"name": "race"}, "rule": "interactions", "rounds": 2, "pulls_per_arm": 1}
    changes = {"search": search, "compensation": {"name": "least_squares", "guard": False}}
    plain = prune_from_config(settings_for(tmp_path, files, model_type, search=search, compensation=None))
    changes["output"] = {"dir": str(tmp_path / "refitted")}
    result = prune_from_config(settings_for(tmp_path, files, model_type, **changes))
    report = Report.from_json(tmp_path / "refitted" / "mabprune" / "report.json")
    assert np.array_equal(result.selection.kept, plain.selection.kept)
    assert report.search.backward_tokens > 0
    assert report.reload["max_logit_difference"] < 1e-4
    assert report.after.parameters == load_pruned(tmp_path / "refitted").num_parameters()
    assert report.after.kl != plain.report.after.kl and report.random != plain.report.random
    assert report.compensation is not None and report.compensation["name"] == changes["compensation"]
    assert all(site["refitted"] for site in report.compensation["sites"])
    assert plain.report.compensation is None


def test_too_few_batches_for_the_refit_are_refused_before_any_pull(
    tmp_path: Path, files: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    settings = settings_for(tmp_path, files, "bert", task={"calibration_examples": 8})
    with pytest.raises(ValueError, match="compensation takes at least 2 calibration batches"):
        prune_from_config(settings)
    assert "dense" not in capsys.readouterr().out and not (tmp_path / "out").exists()


@pytest.mark.parametrize("model_type", ["bert", "llama"])
def test_the_defaults_count_on_the_refit(tmp_path: Path, files: dict[str, str], model_type: str) -> None:
    settings = settings_for(tmp_path, files, model_type)
    settings = check({**settings.model_dump(exclude={"search"})})
    assert settings.search.rule == {"name": "refit"} and settings.compensation == "least_squares"
    result = prune_from_config(settings)
    report = result.report
    assert len(report.search.rounds) == 1 and report.search.backward_tokens > 0
    assert report.compensation is not None and report.reload["max_logit_difference"] < 1e-4
    assert report.after.parameters == load_pruned(tmp_path / "out").num_parameters()
    if model_type == "bert":
        overwrite = settings.output.model_copy(update={"overwrite": True})
        again = prune_from_config(settings.model_copy(update={"output": overwrite}))
        assert np.array_equal(again.selection.kept, result.selection.kept)


def test_recovery_trains_what_stays(tmp_path: Path, files: dict[str, str], finished: tuple[PruneResult, Path]) -> None:
    plain, _ = finished
    changes = {"recovery": {"epochs": 2, "learning_rate": 1e-3}, "output": {"dir": str(tmp_path / "trained")}}
    result = prune_from_config(settings_for(tmp_path, files, "bert", **changes))
    report = Report.from_json(tmp_path / "trained" / "mabprune" / "report.json")
    assert report.recovery is not None and report.recovery["examples"] == 48 and report.recovery["backward_tokens"] > 0
    assert np.array_equal(result.selection.kept, plain.selection.kept)
    assert report.after.loss != plain.report.after.loss
    draws, plain_draws = (
        [replace(draw.figures, behind=None, kl_above=None) for draw in one.random] for one in (report, plain.report)
    )
    assert draws == plain_draws
    assert report.reload["max_logit_difference"] < 1e-4
    assert "recovery trained the pruned model, not the random draws" in report.warnings


def test_the_folder_holds_everything(finished: tuple[PruneResult, Path]) -> None:
    _, folder = finished
    present = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert present >= {
        "config.json",
        "model.safetensors",
        "modeling_pruned.py",
        "tokenizer.json",
        "README.md",
        "figures/kept_widths.png",
        "figures/effects.png",
        "figures/search.png",
        "mabprune/config.yaml",
        "mabprune/report.json",
        "mabprune/arms.parquet",
        "mabprune/examples.parquet",
    }
    assert not [name for name in os.listdir(folder.parent) if name.endswith((".partial", ".old"))]


def test_the_report_is_whole_and_true(finished: tuple[PruneResult, Path]) -> None:
    result, folder = finished
    raw = json.loads((folder / "mabprune" / "report.json").read_text())
    assert {"model", "task", "layout", "target", "seed", "versions", "before", "after", "search", "reload"} <= set(raw)
    fields = {"parameters", "ffn_parameters", "attention_parameters", "macs", "loss", "metrics", "latency_ms"}
    assert fields | {"checkpoint_bytes"} <= set(raw["after"])
    costs = {"policy", "arms", "pulls", "forward_tokens", "backward_tokens", "seconds", "stopped_because"}
    assert costs <= set(raw["search"])
    again = Report.from_json(folder / "mabprune" / "report.json")
    assert again.after == result.report.after

    model = load_pruned(folder)
    assert raw["after"]["parameters"] == sum(p.numel() for p in model.parameters())
    assert raw["after"]["checkpoint_bytes"] == (folder / "model.safetensors").stat().st_size
    assert raw["reload"]["max_logit_difference"] < 1e-4
    arms = pd.read_parquet(folder / "mabprune" / "arms.parquet")
    assert raw["search"]["arms"] == len(arms)
    assert 0 < raw["search"]["pulls"] <= 2 * len(arms), "a race may end before the budget does"
    assert raw["search"]["pulls"] == int(arms["pulls"].sum()) == int(result.search.pulls.sum())
    assert len(raw["random"]) == 2
    assert {draw["figures"]["parameters"] for draw in raw["random"]} == {raw["after"]["parameters"]}
    assert result.report.removed_fraction() == pytest.approx(0.5, abs=0.01)


def test_the_table_of_arms_says_what_stays(finished: tuple[PruneResult, Path]) -> None:
    result, folder = finished
    arms = pd.read_parquet(folder / "mabprune" / "arms.parquet")
    assert len(arms) == 2 * (48 // 8) + 2 * 4
    kept = arms[arms.kept]
    for (kind, site), rows in kept.groupby(["kind", "site"]):
        units = int((rows.stop - rows.start).sum())
        assert result.report.kept[str(kind)][str(site)][0] == units
    assert sorted(arms.order) == list(range(len(arms)))
    assert (arms.loc[~arms.kept, "removed_round"] > 0).all() and (kept.removed_round == 0).all()
    assert arms.loc[~arms.kept, "order"].max() < kept.order.min(), "the order of removal is nested"


def test_random_rows_and_the_after_row_are_what_they_say(
    finished: tuple[PruneResult, Path], data: dict[str, str]
) -> None:
    result, folder = finished
    test = Dataset.from_parquet(data["test"])
    model, tokenizer = load_pruned(folder).eval(), AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        logits = model(**tokenizer(test["sentence"][:], padding=True, return_tensors="pt")).logits
    accuracy = float((logits.argmax(-1).numpy() == np.array(test["label"])).mean())
    assert result.report.after.metrics["accuracy"] == pytest.approx(accuracy)
    assert result.report.before.kl == 0.0 < result.report.after.kl
    after = result.report.after
    assert min(1.0, after.kl) < after.kl_bound <= 1 and 0 <= after.changed < after.changed_bound <= 1
    assert result.report.before.kl_bound is None and f"{after.kl_bound:.3g}" in result.summary(folder)
    assert "With 95% confidence on data like the test split" in (folder / "README.md").read_text()


def test_bounds_may_come_from_a_split_of_their_own(
    tmp_path: Path, files: dict[str, str], finished: tuple[PruneResult, Path]
) -> None:
    """The same model, whose figures are of the same test split; bounds from fewer examples are wider."""
    plain, _ = finished
    splits = {"test": "test", "validation": "validation[:-12]", "certification": "validation[-12:]"}
    settings = settings_for(tmp_path, files, "bert", task={"splits": splits})
    report = prune_from_config(settings).report
    assert report.certified_on == "certification" and plain.report.certified_on == "test"
    assert report.after.metrics == plain.report.after.metrics and report.after.changed == plain.report.after.changed
    assert report.after.kl_bound is not None and report.after.kl_bound != plain.report.after.kl_bound
    assert report.random[0].figures.kl_bound == plain.report.random[0].figures.kl_bound
    assert "95% confidence on data like the certification split" in (tmp_path / "out/README.md").read_text()


def test_a_first_try_of_a_language_model_needs_no_data(tmp_path: Path, files: dict[str, str]) -> None:
    given = settings_for(tmp_path, files, "llama", task={"evaluation_examples": 16}).model_dump()
    given["task"] = {
        name: given["task"][name] for name in ("evaluation_examples", "calibration_examples", "batch_size")
    }
    report = prune_from_config(check(given)).report
    assert report.dataset == "sample-text" and list(report.after.metrics) == ["perplexity"]
    assert any("no data were named" in warning for warning in report.warnings)
    card = (tmp_path / "out/README.md").read_text()
    assert "a sample of WikiText-2, CC BY-SA 3.0" in card and "no data were named" in card


def test_a_criterion_stands_alone_beside_the_result(tmp_path: Path, files: dict[str, str]) -> None:
    """What it leaves is what a run by that criterion leaves, compared on the same examples."""
    output = {"dir": str(tmp_path / "out"), "criteria": ["magnitude"]}
    beside = prune_from_config(settings_for(tmp_path, files, "bert", output=output)).report
    settings = settings_for(tmp_path, files, "bert", output={"dir": str(tmp_path / "alone")})
    by_it = {**settings.model_dump(exclude={"search"}), "search": {"criterion": "magnitude"}}
    alone = prune_from_config(check(by_it)).report
    row = beside.alone["magnitude"]
    assert (row.loss, row.kl, row.metrics) == (alone.after.loss, alone.after.kl, alone.after.metrics)
    assert row.behind is not None and row.kl_above is not None
    assert row.behind[0] == beside.after.metrics["accuracy"] - row.metrics["accuracy"]
    assert row.behind[1] <= row.behind[0] <= row.behind[2]
    assert "magnitude alone" in beside.table()
    assert Report.from_json(tmp_path / "out" / "mabprune" / "report.json").alone == beside.alone


def test_a_criterion_that_there_is_not_is_refused_before_the_run(tmp_path: Path, files: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="magnitud"):
        prune_from_config(
            settings_for(tmp_path, files, "bert", output={"dir": str(tmp_path / "out"), "criteria": ["magnitud"]})
        )
    assert not (tmp_path / "out").exists()


def test_a_second_run_gives_the_same_and_needs_leave_to_overwrite(
    tmp_path: Path, files: dict[str, str], finished: tuple[PruneResult, Path]
) -> None:
    first, folder = finished
    shutil.copytree(folder, tmp_path / "out")
    settings = settings_for(tmp_path, files, "bert")
    with pytest.raises(FileExistsError, match=r"exists.*output.overwrite"):
        prune_from_config(settings)
    second = prune_from_config(settings_for(tmp_path, files, "bert", output={"overwrite": True}))
    assert np.array_equal(first.search.order, second.search.order)
    assert first.report.after.metrics == second.report.after.metrics


def test_nothing_is_left_behind_when_writing_fails(
    tmp_path: Path, files: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hf_mabprune.artifacts.plots.save_figures", full)
    with pytest.raises(OSError, match="No space left"):
        prune_from_config(settings_for(tmp_path, files, "bert"))
    assert not (tmp_path / "out").exists()
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".out")]


def test_a_push_without_a_token_is_refused_before_the_run(
    tmp_path: Path, files: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hf_mabprune.artifacts.publish.get_token", lambda: None)
    with pytest.raises(PermissionError, match="pushing needs a token, and it is missing: run `hf auth login`"):
        prune_from_config(settings_for(tmp_path, files, "bert", output={"push_to_hub": "me/small"}))
    assert not (tmp_path / "out.state").exists()


@pytest.mark.filterwarnings("ignore:the loss of calibration batch")
def test_broken_batches_are_skipped_counted_and_limited(tmp_path: Path, files: dict[str, str]) -> None:
    search = {"rounds": 2, "pulls_per_arm": 8, "policy": {"name": "sweep"}}  # which meets every batch
    settings = settings_for(tmp_path, files, "bert", search=search)
    tokenizer, model = make_tokenizer("pair"), tiny_model("bert", "AutoModelForSequenceClassification")
    with torch.no_grad():  # a word of the calibration data alone, whose embedding has no finite mean
        model.bert.embeddings.word_embeddings.weight[tokenizer.unk_token_id] = 3e38
    model.save_pretrained(tmp_path / "model")
    train = sentences(48, 0)
    train["sentence"][5] = "a z"
    Dataset.from_dict(train).to_parquet(files["train"])
    report = prune_from_config(settings).report
    assert len(report.search.broken_batches) == 1
    skipped = f"calibration batches without a finite loss were skipped: {report.search.broken_batches[0]}"
    assert skipped in report.warnings
    assert "were skipped" in (tmp_path / "out" / "README.md").read_text()

    strict = settings.model_copy(update={"output": settings.output.model_copy(update={"overwrite": True})})
    strict = strict.model_copy(update={"task": settings.task.model_copy(update={"max_broken_batches": 0})})
    with pytest.raises(ValueError, match=r"batch \d is not finite, and 0 were skipped already, at most 0 may be"):
        prune_from_config(strict)
    assert (tmp_path / "out" / "config.json").exists() and not (tmp_path / "out.state").exists()

    test = sentences(48, 2)
    test["sentence"][5] = "a z"
    Dataset.from_dict(test).to_parquet(files["test"])
    with pytest.raises(ValueError, match="the dense model's loss on 1 of 48 test examples is not finite"):
        prune_from_config(strict)


@pytest.mark.parametrize("layout", ["uniform", "per_layer"])
def test_language_models_in_both_layouts(layout: str, tmp_path: Path, files: dict[str, str]) -> None:
    result = prune_from_config(settings_for(tmp_path, files, "llama", prune={"layout": layout}))
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    prompt = torch.tensor([[6, 7, 8]])
    settings = {"max_new_tokens": 6, "do_sample": False, "attention_mask": torch.ones_like(prompt)}

    assert torch.equal(again.generate(prompt, **settings), result.model.generate(prompt, **settings))
    assert result.report.main_metric == "perplexity" and not result.report.greater_is_better
    assert (again.config.model_type == "llama") == (layout == "uniform")
    if layout == "uniform":
        assert (again.config.intermediate_size, again.config.num_key_value_heads) == (24, 1)


def test_layout_auto_says_what_it_took_and_why(
    tmp_path: Path, files: dict[str, str], uniform: tuple[PruneResult, Path]
) -> None:
    report = uniform[0].report
    assert report.layout == "uniform" and "loads with plain AutoModel and costs little" in report.layout_reason
    changes = {"arms": ["neuron", "head"], "target": {"heads": 0.5}, "layout": "auto", "auto_tolerance": 10.0}
    report = prune_from_config(settings_for(tmp_path, files, "bert", prune=changes)).report
    assert report.layout == "per_layer"
    assert "not possible: a stock bert config cannot say" in report.layout_reason


def test_parameters_and_macs_as_targets_are_reached(tmp_path: Path, files: dict[str, str]) -> None:
    for name in ("parameters", "macs"):
        changes = {"target": {name: 0.3}, "block_size": 1}
        report = prune_from_config(
            settings_for(tmp_path, files, "llama", prune=changes, output={"overwrite": True})
        ).report
        before, after = getattr(report.before, name), getattr(report.after, name)
        largest = pd.read_parquet(tmp_path / "out" / "mabprune" / "arms.parquet")[name].max()
        assert 0.3 <= 1 - after / before < 0.3 + largest / before, name


def test_the_python_call_leaves_the_model_alone(tmp_path: Path) -> None:
    model = tiny_model("bert", "AutoModelForSequenceClassification").train()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    result = prune(
        model,
        make_tokenizer("pair"),
        calibration=Dataset.from_dict(sentences(32, 0)),
        validation=Dataset.from_dict(sentences(16, 1)),
        test=Dataset.from_dict(sentences(16, 2)),
        target={"parameters": 0.2},
        output_dir=tmp_path / "out",
        task={"batch_size": 8},
        prune={"block_size": 8},
        search={"rounds": 2, "pulls_per_arm": 1},
    )
    assert model.training and all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert sum(p.numel() for p in result.model.parameters()) <= 0.8 * sum(p.numel() for p in model.parameters())
    assert "before" in result.table() and "random 0" in result.table()
    result.model.save_pretrained(tmp_path / "again")
    assert isinstance(AutoModelForSequenceClassification.from_pretrained(tmp_path / "again"), type(result.model))


def test_data_in_any_form_give_the_same_result(tmp_path: Path) -> None:
    data = {split: Dataset.from_dict(sentences(24, seed)) for seed, split in enumerate(PURPOSES)}
    forms = {
        "calibration": data["calibration"].to_pandas(),
        "validation": data["validation"].to_iterable_dataset(),
        "test": data["test"].with_transform(dict),
    }
    settings = {"task": {"batch_size": 8}, "prune": {"block_size": 8}, "search": {"rounds": 2, "pulls_per_arm": 1}}
    one, other = (
        prune(
            tiny_model("bert", "AutoModelForSequenceClassification"),
            make_tokenizer("pair"),
            **given,
            target={"neurons": 0.5},
            output_dir=tmp_path / name,
            **settings,
        )
        for name, given in (("plain", data), ("forms", forms))
    )
    assert (one.selection.kept == other.selection.kept).all()
    assert one.report.after.loss == other.report.after.loss


def test_what_is_wrong_with_a_split_is_in_the_report(tmp_path: Path, files: dict[str, str]) -> None:
    train, rows = sentences(48, 0), sentences(48, 1)
    rows = {name: [*train[name][:24], *values[24:]] for name, values in rows.items()}
    Dataset.from_dict(rows).to_parquet(files["validation"])
    with pytest.warns(UserWarning, match="rows of validation are in calibration, too"):
        report = prune_from_config(settings_for(tmp_path, files, "bert")).report
    assert any("of the 48 rows of validation are in calibration, too" in warning for warning in report.warnings)
    assert "rows of validation are in calibration, too" in (tmp_path / "out" / "README.md").read_text()


WITHOUT_PACKAGE = """
import json, sys
sys.modules["hf_mabprune"] = None
import torch
from transformers import AutoModelForSequenceClassification
for folder, trust in json.loads(sys.argv[1]):
    try:
        model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=trust).eval()
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[2, 6, 7, 3]])).logits.sum().item()
        print(json.dumps([type(model).__name__, logits]))
    except Exception as error:
        print(json.dumps([type(error).__name__, str(error)]))
"""


@pytest.fixture(scope="module")
def elsewhere(
    finished: tuple[PruneResult, Path], uniform: tuple[PruneResult, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[Any]]:
    """What a process makes of the checkpoints that has no package: a class and its logits, or an error."""
    cases = {"refused": (finished[1], False), "trusted": (finished[1], True), "uniform": (uniform[1], False)}
    asked = json.dumps([(str(folder), trust) for folder, trust in cases.values()])
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_PACKAGE, asked],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_MODULES_CACHE": str(tmp_path_factory.mktemp("modules"))},
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(cases, map(json.loads, done.stdout.splitlines()), strict=True))


def logits_of(result: PruneResult) -> float:
    with torch.no_grad():
        return result.model(input_ids=torch.tensor([[2, 6, 7, 3]])).logits.sum().item()


def test_a_per_layer_checkpoint_loads_where_the_package_is_not(
    finished: tuple[PruneResult, Path], elsewhere: dict[str, list[Any]]
) -> None:
    name, value = elsewhere["trusted"]
    assert name == "MabpruneBertForSequenceClassification"
    assert value == pytest.approx(logits_of(finished[0]), abs=1e-4)
    error, message = elsewhere["refused"]
    assert error.endswith("Error") and "trust_remote_code" in message


def test_a_uniform_checkpoint_needs_neither_package_nor_trust(
    uniform: tuple[PruneResult, Path], elsewhere: dict[str, list[Any]]
) -> None:
    name, value = elsewhere["uniform"]
    assert name == "BertForSequenceClassification"
    assert value == pytest.approx(logits_of(uniform[0]), abs=1e-4)
