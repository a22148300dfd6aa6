"""Runs that cut a vocabulary first: what is written, what the report says of it, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel

from hf_mabprune import prune
from hf_mabprune.artifacts.run_folder import RunFolder
from hf_mabprune.cli import main
from hf_mabprune.config import check
from hf_mabprune.evaluation.report import Report
from hf_mabprune.pipeline import prune_from_config
from hf_mabprune.preview import plan_run
from tests.problems import settings_for
from tests.small_tokenizers import small_tokenizer, texts
from tests.tasks.tiny_tasks import make_tokenizer
from tests.tiny_models import tiny_model

pytestmark = [pytest.mark.whole, pytest.mark.usefixtures("without_figures")]
ROWS = {"train": 24, "validation": 16, "test": 120}
UNIFORM = {"target": {"neurons": 0.5}, "arms": ["neuron"], "layout": "uniform"}
CRITERION = {"rounds": None, "pulls_per_arm": None, "criterion": "magnitude"}


def split(count: int, start: int) -> dict[str, list[Any]]:
    """Sentences of made-up words with labels that mean nothing."""
    return {"sentence": texts(300)[start : start + count], "label": [number % 2 for number in range(count)]}


def run_on(folder: Path, model_type: str, tokenizer: str, keep: Any = "calibration") -> Any:
    """Settings of a small run that keeps the tokens of some texts."""
    folder.mkdir(exist_ok=True)
    files, start = {}, 0
    for name, count in ROWS.items():
        files[name] = str(folder / f"{name}.parquet")
        Dataset.from_dict(split(count, start)).to_parquet(files[name])
        start += count
    vocabulary = {"vocabulary": {"keep": keep}} if keep else {}
    parts = {"prune": {**UNIFORM, **vocabulary}, "search": CRITERION, "task": {"batch_size": 4}}
    settings = settings_for(folder, files, model_type, **parts)
    model(model_type, len(small_tokenizer(tokenizer))).save_pretrained(folder / "model")
    small_tokenizer(tokenizer).save_pretrained(folder / "model")
    return settings


def model(model_type: str, rows: int) -> PreTrainedModel:
    """A tiny model for a tokenizer of so many tokens."""
    head = "AutoModelForSequenceClassification" if model_type == "bert" else "AutoModelForCausalLM"
    return tiny_model(model_type, head, vocab_size=rows)


@pytest.mark.parametrize(("model_type", "tokenizer"), [("bert", "wordpiece"), ("llama", "byte-level")])
def test_a_run_cuts_the_vocabulary_of_its_data(model_type: str, tokenizer: str, tmp_path: Path) -> None:
    settings = run_on(tmp_path, model_type, tokenizer)
    result, rows = prune_from_config(settings), len(small_tokenizer(tokenizer))
    loader = AutoModelForSequenceClassification if model_type == "bert" else AutoModelForCausalLM
    small, smaller = loader.from_pretrained(tmp_path / "out"), AutoTokenizer.from_pretrained(tmp_path / "out")
    assert len(smaller) == small.config.vocab_size < rows
    own, known = small_tokenizer(tokenizer), split(20, 0)["sentence"]  # what fills no window is not read
    assert [smaller.tokenize(text) for text in known] == [own.tokenize(text) for text in known]
    report = Report.from_json(tmp_path / "out" / "mabprune" / "report.json")
    said = report.vocabulary
    assert said is not None and said.tokens == (rows, len(smaller))
    whole = model(model_type, rows)
    assert report.before.parameters == said.parameters[0] == whole.num_parameters()
    assert report.after.parameters == small.num_parameters() < said.parameters[1]
    assert report.before.checkpoint_bytes == 4 * whole.num_parameters()
    assert report.reload["max_logit_difference"] < 1e-4
    assert said.measure == ("accuracy" if model_type == "bert" else "bits per byte")
    assert (said.kl is None) == (model_type == "llama")
    line = f"{len(smaller):,} of {rows:,} tokens stay, those of the calibration split"
    assert line in result.summary(tmp_path / "out")
    assert line in (tmp_path / "out" / "README.md").read_text()
    assert any(line in text for text in plan_run(settings).lines)


def test_tokens_of_files_stay_and_their_places_are_not_published(tmp_path: Path) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("\n".join(texts(200)))
    prune_from_config(run_on(tmp_path, "bert", "wordpiece", [str(notes)]))
    smaller, whole = AutoTokenizer.from_pretrained(tmp_path / "out"), small_tokenizer("wordpiece")
    assert [smaller.tokenize(text) for text in texts(200)] == [whole.tokenize(text) for text in texts(200)]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "those of notes.txt" in card and str(tmp_path) not in card


def test_a_model_in_memory_is_left_as_it_is_and_what_was_cut_is_cut_again(tmp_path: Path) -> None:
    tokenizer = small_tokenizer("wordpiece")
    dense, before = model("bert", len(tokenizer)), tokenizer.backend_tokenizer.to_str()
    data = [Dataset.from_dict(split(count, start)) for count, start in ((64, 0), (32, 64), (32, 96))]
    settings = {"task": {"batch_size": 8}, "search": {"criterion": "magnitude"}, "output": {"random_seeds": 1}}
    cut = {**UNIFORM, "vocabulary": {"min_count": 3}}
    target = cut.pop("target")
    first = prune(dense, tokenizer, *data, target, tmp_path / "first", prune=cut, **settings)
    assert dense.config.vocab_size == len(tokenizer) and tokenizer.backend_tokenizer.to_str() == before
    smaller = AutoTokenizer.from_pretrained(tmp_path / "first")
    again = prune(first.model, smaller, *data, target, tmp_path / "again", prune=cut, **settings)
    assert again.report.vocabulary is not None and first.report.vocabulary is not None
    assert again.report.vocabulary.tokens[0] == first.report.vocabulary.tokens[1] == len(smaller)
    assert first.cut({"neurons": 0.25}).model.config.vocab_size == len(smaller)


def test_a_run_is_verified_without_its_texts_and_other_sizes_are_cut_from_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("\n".join(texts(20)))
    prune_from_config(run_on(tmp_path, "llama", "byte-level", str(notes)))
    out, other = str(tmp_path / "out"), str(tmp_path / "other")
    assert main(["cut", out, "--target.neurons", "0.25", "--output.dir", other]) == 0
    tokenizers = [json.loads((Path(each) / "tokenizer.json").read_text()) for each in (out, other)]
    assert tokenizers[0] == tokenizers[1]
    notes.unlink()
    capsys.readouterr()
    assert main(["verify", out, "--base", str(tmp_path / "model"), "--json"]) == 0
    checks = {check["name"]: check["outcome"] for check in json.loads(capsys.readouterr().out)}
    assert {
        checks[name] for name in ("base weights", "tensors", "sliced tensors", "config fields", "other files")
    } == {"ok"}


def test_what_cannot_be_cut_is_refused_before_a_search(tmp_path: Path) -> None:
    settings = run_on(tmp_path, "bert", "wordpiece")
    make_tokenizer("pair").save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match=r"knows tokenizers of the kinds WordPiece, BPE, Unigram, got WordLevel"):
        prune_from_config(settings)
    with pytest.raises(FileNotFoundError, match=r"prune\.vocabulary\.keep: no file 'nowhere\.txt'"):
        prune_from_config(run_on(tmp_path, "bert", "wordpiece", "nowhere.txt"))
    offloaded = settings.model_copy(update={"model": settings.model.model_copy(update={"device_map": "auto"})})
    with pytest.raises(ValueError, match=r"prune\.vocabulary cuts embeddings in memory"):
        prune_from_config(offloaded)
    assert not RunFolder(settings.output.dir).root.exists()


def test_tokens_that_are_rare_go(tmp_path: Path) -> None:
    counts = []
    for least in (1, 5):
        settings = run_on(tmp_path / str(least), "bert", "wordpiece").model_dump()
        settings["prune"]["vocabulary"]["min_count"] = least
        counts.append(plan_run(check(settings)).lines[1])
    assert "that occur 5 times or more" in counts[1]
    assert int(counts[1].split()[1]) < int(counts[0].split()[1])
