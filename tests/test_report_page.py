"""`mabprune report` on small runs."""

import html
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from hf_mabprune import load_pruned, prune
from hf_mabprune.artifacts import page_figures
from hf_mabprune.artifacts.publishable import publishable_files
from hf_mabprune.artifacts.run_data import RunData, read_run_data, task_of_run
from hf_mabprune.artifacts.run_folder import RunFolder
from hf_mabprune.cli.commands import main
from hf_mabprune.config import PruneConfig
from hf_mabprune.pipeline import prune_from_config
from tests.problems import sentences, settings_for
from tests.tasks.tiny_tasks import make_tokenizer
from tests.tiny_models import tiny_model

pytestmark = [pytest.mark.whole, pytest.mark.usefixtures("without_figures")]
EVIL = "a b <script>alert(1)</script> c"


@pytest.fixture(autouse=True)
def without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a page are looked at elsewhere."""
    for name in ("effects", "pareto"):
        monkeypatch.setattr(page_figures, name, lambda *_: [])


@pytest.fixture(scope="module")
def files(place: Path) -> dict[str, str]:
    """Three splits with texts that would like to be markup, and a column that cuts them in two."""
    found = {}
    for seed, split in enumerate(("train", "validation", "test")):
        rows = sentences(48, seed)
        texts = rows["sentence"]
        rows["sentence"] = [f"{EVIL} {text}" if number % 3 else text for number, text in enumerate(texts)]
        rows["source"] = ["web" if number % 2 else "books" for number in range(48)]
        found[split] = str(place / f"{split}.parquet")
        pd.DataFrame(rows).to_parquet(found[split])
    return found


def sensitive_model(texts: list[str]) -> PreTrainedModel:
    """A tiny classifier with large weights, which gives half of some texts to either class."""
    model = tiny_model("bert", "AutoModelForSequenceClassification").eval()
    inputs = make_tokenizer("pair")(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 2 and "embeddings" not in name:
                weight *= 8
        logits = model(**inputs).logits
        model.classifier.bias[:] = 0
        model.classifier.bias[:2] -= logits[:, :2].median(0).values
        model.classifier.bias[2:] -= 1000.0
    return model


@pytest.fixture(scope="module")
def run(place: Path, files: dict[str, str]) -> Path:
    """A run whose test examples are drawn, so that their order is not that of the file, and whose answers change."""
    prune = {"target": {"neurons": 0.8, "heads": 0.75}}
    search, output = {"rounds": 1, "pulls_per_arm": 1}, {"random_seeds": 1}
    task = {"evaluation_examples": 40}
    changes = {"task": task, "prune": prune, "search": search, "output": output, "compensation": None}
    settings = settings_for(place, files, "bert", **changes)
    sensitive_model(pd.read_parquet(files["test"])["sentence"].tolist()).save_pretrained(place / "model")
    prune_from_config(settings)
    return place / "out"


def page(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> str:
    """Runs the command; gives the page, or what it said where it failed."""
    assert main(["report", *map(str, arguments)]) == code
    said = capsys.readouterr()
    return Path(said.out.splitlines()[-1].removeprefix("page: ")).read_text() if code == 0 else said.err


def data_of(run: Path) -> tuple[RunData, pd.DataFrame]:
    settings = PruneConfig.from_yaml(RunFolder(run).config)
    report = RunFolder(run).read()[1]
    task = task_of_run(settings, run, report)
    return read_run_data(settings, task, report), pd.read_parquet(RunFolder(run).examples)


def test_every_stored_answer_is_that_of_the_text_beside_it(run: Path, place: Path, files: dict[str, str]) -> None:
    """The dense and the pruned model, asked once more about each text, say what the table has."""
    data, table = data_of(run)
    rows = pd.read_parquet(files["test"])
    tokenizer = make_tokenizer("pair")
    models = {
        "dense": AutoModelForSequenceClassification.from_pretrained(place / "model").eval(),
        "pruned": load_pruned(run).eval(),
    }
    assert len(table) == 40 and table["tokens"].is_monotonic_increasing
    for number in range(40):
        row = rows.iloc[int(data.place(number).removeprefix("row "))]
        ((column, text),) = data.texts(number)
        assert (column, text) == ("sentence", row["sentence"])
        assert table["target"][number] == row["label"]
        inputs = tokenizer(text, return_tensors="pt")
        assert table["tokens"][number] == inputs["input_ids"].shape[1]
        for name, model in models.items():
            with torch.inference_mode():
                logits = model(**inputs).logits[0]
            if logits.diff().abs() > 1e-3:  # else rounding decides
                assert int(logits.argmax()) == table[name][number]
    assert [data.slices()["source"][number] for number in range(40)] == [
        rows["source"][int(data.place(number).removeprefix("row "))] for number in range(40)
    ]


def test_the_page_tells_texts_slices_and_changes(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = page(capsys, run)
    changed = int((pd.read_parquet(RunFolder(run).examples)["changed"] > 0).sum())
    assert f"{changed} of 40 test examples are answered otherwise" in text
    assert len(re.findall('<p class="text">', text)) == min(20, changed) > 0
    assert "by source" in text and "books" in text and "by class" in text
    assert "<script" not in text and html.escape("<script>") in text
    assert RunFolder(run).page.read_text() == text, "beside the run, and replaced by the next"
    assert len(re.findall('<p class="text">', page(capsys, run, "--examples", 1))) == 1
    assert "by label" in page(capsys, run, "--slice", "label", "--output", run.parent / "other" / "page.html")


def test_no_text_where_none_is_wanted(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = page(capsys, run, "--examples", 0)
    assert "&lt;script&gt;" not in text and "None is shown" in text and "by source" in text


def test_other_data_are_not_taken_for_those_of_the_run(
    run: Path, files: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "test.parquet"
    pd.read_parquet(files["test"]).iloc[::-1].to_parquet(other)
    mixed = yaml.safe_dump({**files, "test": str(other)}, default_flow_style=True, width=10**6).strip()
    text = page(capsys, run, "--task.dataset.data_files", mixed)
    assert "the data there are not those of the run" in text and html.escape("<script>") not in text
    assert "by class" in text and "by source" not in text, "what the run stored is told all the same"
    gone = page(capsys, run, "--task.dataset.data_files", mixed.replace(str(other), str(tmp_path / "gone.parquet")))
    assert "Their texts are missing" in gone and str(tmp_path) not in gone


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--output", "{run}/page.html"], "a push would take it along"),
        (["--output", "{other}"], "is no page of hf_mabprune"),
        (["--slice", "sources"], "no column 'sources'. Did you mean 'source'?"),
        (["--examples", "-1"], "--examples must be 0 or more, got -1"),
        (["--examples", "many"], "invalid int value"),
    ],
)
def test_what_cannot_be_is_refused(
    run: Path, tmp_path: Path, options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "notes.html"
    other.write_text("mine")
    line = page(capsys, run, *(option.format(run=run, other=other) for option in options), code=2)
    assert said in line and line.count("\n") == 1
    assert other.read_text() == "mine" and not (run / "page.html").exists()


def test_what_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "holds no mabprune/config.yaml" in page(capsys, tmp_path, code=2)


def test_answers_to_examples_are_never_published(run: Path) -> None:
    assert RunFolder(run).examples.is_file()
    names = set(publishable_files(run))
    assert RunFolder("").arms.as_posix() in names and RunFolder("").examples.as_posix() not in names


def test_a_run_of_an_older_version_has_a_page_without_examples(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    older = shutil.copytree(run, tmp_path / "older")
    RunFolder(older).examples.unlink()
    assert "make it again with this version" in page(capsys, older)
    assert "the run stored no answers to examples" in page(capsys, older, "--slice", "source", code=2)


def test_several_sizes_of_a_language_model_from_data_in_memory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    splits = [{"text": sentences(48, seed)["sentence"]} for seed in range(3)]
    model, tokenizer = tiny_model("llama", "AutoModelForCausalLM"), make_tokenizer("plain")
    prune(
        model, tokenizer, *(pd.DataFrame(split) for split in splits), {"neurons": [0.25, 0.5]}, tmp_path / "out",
        task={"max_length": 8, "batch_size": 8}, prune={"block_size": 8, "layout": "per_layer"},
        search={"rounds": 1, "pulls_per_arm": 1}, output={"random_seeds": 1}, compensation=None,
    )  # fmt: skip
    text = page(capsys, tmp_path / "out")
    assert "2 sizes from one search" in text and text.count("Examples that moved most") == 2
    assert "the data were given in Python" in text and "mean loss (cross-entropy in nats)" in text
