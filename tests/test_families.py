"""Whole runs on families that are neither BERT nor Llama: every noun of theirs from pulls to the model card."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from datasets import Dataset, Features, Image, Value
from transformers import PreTrainedModel

from hf_mabprune import PruneResult, prune
from hf_mabprune.architectures import ARCHITECTURES, architecture_of
from hf_mabprune.cli.commands import main
from hf_mabprune.tasks.base import TASKS
from tests.seeds import moved
from tests.shows import Shows
from tests.tasks.tiny_tasks import make_processor, pictures
from tests.tiny_models import head_of, tiny_model

pytestmark = [pytest.mark.whole, pytest.mark.usefixtures("without_figures")]
RUNS = {  # model type -> head, processor, task
    "gpt2": ("AutoModelForCausalLM", "plain", {"max_length": 8}),
    "mixtral": ("AutoModelForCausalLM", "plain", {"max_length": 8}),
    "t5": ("AutoModelForSeq2SeqLM", "end", {"metrics": ["perplexity", "exact_match"]}),
    "vit": ("AutoModelForImageClassification", "image", {}),
}


def rows_of(head: str, seed: int) -> Dataset:
    """Forty rows of the kind that the task of a head reads."""
    rng = np.random.default_rng(moved(seed))
    texts = [" ".join(rng.choice(list("abcdefghij"), int(rng.integers(3, 8)))) for _ in range(40)]
    labels = rng.integers(0, 2, 40).tolist()
    if head == "AutoModelForImageClassification":
        features = Features({"image": Image(), "label": Value("int64")})
        return Dataset.from_dict({"image": pictures(40, seed), "label": labels}, features)
    if head == "AutoModelForSequenceClassification":
        return Dataset.from_dict({"text": texts, "label": labels})
    if head == "AutoModelForSeq2SeqLM":
        return Dataset.from_dict({"source": texts, "target": [" ".join(sorted(text.split())) for text in texts]})
    return Dataset.from_dict({"text": texts})


def run(
    folder: Path, model_type: str, target: dict[str, float], **settings: Any
) -> tuple[PreTrainedModel, PruneResult]:
    """Prunes a tiny model of a type."""
    head, processor, task = RUNS[model_type]
    model = tiny_model(model_type, head)
    splits = [rows_of(head, seed) for seed in range(3)]
    made = make_processor(processor)
    if model_type == "vit":
        made.size = {"height": 16, "width": 16}
    result = prune(
        model, made, *splits, target=target, output_dir=folder / "out",
        task={"batch_size": 8, **task}, search={"rule": {"name": "refit", "moves": 4}},
        output={"random_seeds": 1}, prune={"block_size": 8, **settings},
    )  # fmt: skip
    return model, result


@pytest.mark.parametrize(
    ("model_type", "target", "layout"),
    [
        ("gpt2", {"neurons": 0.5, "heads": 0.5}, "per_layer"),
        ("gpt2", {"neurons": 0.5}, "uniform"),
        ("t5", {"neurons": 0.5, "heads": 0.5}, "per_layer"),
        ("t5", {"neurons": 0.5}, "uniform"),
        ("vit", {"neurons": 0.5, "heads": 0.5}, "per_layer"),
        ("vit", {"parameters": 0.2}, "uniform"),
        ("mixtral", {"neurons": 0.5, "heads": 0.5}, "per_layer"),
        ("mixtral", {"neurons": 0.3, "experts": 0.25}, "per_layer"),
        ("mixtral", {"experts": 0.5}, "uniform"),
    ],
    ids=str,
)
def test_a_run_ends_with_a_checkpoint_that_says_what_is_measured(
    model_type: str, target: dict[str, float], layout: str, tmp_path: Path
) -> None:
    dense, result = run(tmp_path, model_type, target, layout=layout)
    report, folder = result.report, tmp_path / "out"
    again = getattr(transformers, RUNS[model_type][0]).from_pretrained(folder)
    assert report.layout == layout
    assert (type(again) is type(dense)) == (layout == "uniform")
    assert report.reload["max_logit_difference"] < 1e-4
    assert sum(parameter.numel() for parameter in again.parameters()) == report.after.parameters
    assert report.after.parameters < report.before.parameters == dense.num_parameters()
    assert report.after.macs < report.before.macs
    arms, sites = result.arms, {site.name: site for site in architecture_of(dense).sites(dense)}
    for kind, kept in report.kept.items():
        counted = sum(before - units for units, before in kept.values()) / sum(before for _, before in kept.values())
        if f"{kind}s" in target:
            assert counted == pytest.approx(target[f"{kind}s"], abs=0.13)
        assert {sites[name].kind for name in kept} == {kind}
    assert set(arms.site) == {name for kept in report.kept.values() for name in kept}
    assert all(site["refitted"] or site["reason"] for site in report.compensation["sites"])
    card = (folder / "README.md").read_text()
    assert f"{RUNS[model_type][0]}.from_pretrained" in card
    assert f"pipeline_tag: {TASKS.get(report.task).pipeline_tag}" in card
    assert (folder / ("preprocessor_config.json" if model_type == "vit" else "tokenizer.json")).exists()


@pytest.mark.parametrize("criterion", ["kfac_obs", "magnitude"])
def test_experts_go_by_a_criterion_alone(criterion: str, tmp_path: Path) -> None:
    head, processor, task = RUNS["mixtral"]
    result = prune(
        tiny_model("mixtral", head), make_processor(processor), *(rows_of(head, seed) for seed in range(3)),
        target={"experts": 0.25}, output_dir=tmp_path / "out", task={"batch_size": 8, **task},
        search={"criterion": criterion}, output={"random_seeds": 1},
    )  # fmt: skip
    removed = [before - kept for kept, before in result.report.kept["expert"].values()]
    assert sum(removed) == 2 and max(removed) <= 2, "two of eight, and two stay in every layer"


TASKED = {  # head -> processor, settings of the task
    "AutoModelForCausalLM": ("plain", ["--task.max_length", "8"]),
    "AutoModelForSeq2SeqLM": ("end", []),
    "AutoModelForImageClassification": ("image", []),
    "AutoModelForSequenceClassification": ("pair", []),
}


@pytest.mark.slow
@pytest.mark.parametrize("model_type", [each for each in ARCHITECTURES.names() if head_of(each) in TASKED])
def test_the_command_prunes_every_type(
    model_type: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], shows: Shows
) -> None:
    """With default settings but for a little data; the time it took is printed."""
    head = head_of(model_type)
    kind, options = TASKED[head]
    model, processor = tiny_model(model_type, head), make_processor(kind)
    if kind == "image":
        processor.size = {"height": 16, "width": 16}
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    files = {}
    for seed, split in enumerate(("train", "validation", "test")):
        files[split] = str(tmp_path / f"{split}.parquet")
        rows_of(head, seed).to_parquet(files[split])
    started = time.monotonic()
    code = main([
        "prune", "--model.name", str(tmp_path / "model"), "--output.dir", str(tmp_path / "out"),
        "--task.dataset", json.dumps({"path": "parquet", "data_files": files}),
        "--task.splits", json.dumps({"calibration": "train", "validation": "validation", "test": "test"}),
        "--task.batch_size", "8", "--prune.target", json.dumps({"neurons": 0.5}), *options,
    ])  # fmt: skip
    said = capsys.readouterr()
    assert code == 0, said.err
    seconds = time.monotonic() - started
    shows("command", model_type, ["neuron"], seconds=round(seconds))
    with capsys.disabled():
        print(f"{model_type}: {seconds:.0f} s")  # noqa: T201
    again = getattr(transformers, head).from_pretrained(tmp_path / "out")
    assert again.num_parameters() < model.num_parameters()
