"""Embeddings of sentences, and the folders of sentence-transformers that they come from and go to."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from huggingface_hub import ModelCard
from transformers import AutoModel, BertForMaskedLM, BertModel, PreTrainedModel

from hf_mabprune.artifacts.stored import evaluate_checkpoint
from hf_mabprune.checkpoints.processors import load_processor
from hf_mabprune.cli import main
from hf_mabprune.config import DatasetConfig, EvaluateConfig, TaskConfig, check
from hf_mabprune.effects.masking import keep_masks, masked
from hf_mabprune.evaluation.chance import below_chance
from hf_mabprune.pipeline import prune_from_config
from hf_mabprune.session import REFIT, calibration_batches, load_model
from hf_mabprune.surgery.cut import cut
from hf_mabprune.tasks.base import Task
from hf_mabprune.tasks.sampling import batches_of
from hf_mabprune.tasks.scores import Scores
from hf_mabprune.tasks.sentence_embedding import EmbeddingReadout, SentenceEmbedding, pooled
from tests.seeds import moved
from tests.tasks.tiny_tasks import bert_config, embedder, make_tokenizer, task_of
from tests.tiny_models import keep_for

MODULES = ("Transformer", "Pooling", "Normalize")
PROMPTS = {"prompts": {"query": "a a ", "document": "b "}, "default_prompt_name": "query"}
TEXTS = ["a b c d e", "a", "c d", "f g h i j a b", "e e", "b c", "j", "h g f"]


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def sentence_transformer(folder: Path, pooling: Any = "mean", kinds: Any = MODULES, **model: Any) -> Path:
    """A tiny model in the layout that `SentenceTransformer.save` leaves, before version 6."""
    embedder().save_pretrained(folder)
    make_tokenizer("pair").save_pretrained(folder)
    modules = [
        {
            "idx": at,
            "name": str(at),
            "path": f"{at}_{kind}" if at else "",
            "type": f"sentence_transformers.models.{kind}",
        }
        for at, kind in enumerate(kinds)
    ]
    write_json(folder / "modules.json", modules)
    write_json(folder / "config_sentence_transformers.json", PROMPTS | model)
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": 12, "do_lower_case": True})
    flags = {"mean": "mean_tokens", "cls": "cls_token", "max": "max_tokens", "lasttoken": "lasttoken"}
    settings = {f"pooling_mode_{flag}": way == pooling for way, flag in flags.items()}
    write_json(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": 16, **settings})
    return folder


def stored(folder: Path) -> tuple[SentenceEmbedding, PreTrainedModel]:
    model = AutoModel.from_pretrained(folder).eval()
    task = task_of(model, load_processor("AutoTokenizer", str(folder)))
    assert isinstance(task, SentenceEmbedding)
    return task, model


def embeddings_of(task: Task, model: PreTrainedModel, texts: list[str]) -> torch.Tensor:
    (batch,) = batches_of(task, task.encode(Dataset.from_dict({"text": texts})), 100)
    with torch.no_grad():
        return task.readout(model, batch).outputs[:, 0]


def test_pooling_by_hand() -> None:
    states = torch.tensor([[[1.0, -4.0], [3.0, -2.0], [9.0, 9.0]]])
    mask = torch.tensor([[1, 1, 0]])
    found = {pooling: pooled(states, mask, pooling).tolist() for pooling in ("mean", "cls", "max", "lasttoken")}
    assert found == {"mean": [[2, -3]], "cls": [[1, -4]], "max": [[3, -2]], "lasttoken": [[3, -2]]}


def test_the_divergence_is_one_minus_the_cosine() -> None:
    torch.manual_seed(moved(0))
    directions = torch.nn.functional.normalize(torch.randn(2, 3, 2, 5), dim=-1)
    dense, moved_to = (EmbeddingReadout(outputs, torch.full((3,), torch.nan)) for outputs in directions)
    cosines = (directions[0] * directions[1]).sum(-1)
    torch.testing.assert_close(moved_to.divergence(dense), (1 - cosines).mean(1).double(), rtol=1e-5, atol=1e-6)
    arms = EmbeddingReadout(directions, dense.targets)
    both = arms.divergence(dense, dense.distribution())
    assert both[0].tolist() == [0.0] * 3
    torch.testing.assert_close(both[1], moved_to.divergence(dense))


def test_half_the_squares_of_drawn_coordinates_are_the_divergence_in_the_mean() -> None:
    torch.manual_seed(moved(0))
    first, second = torch.nn.functional.normalize(torch.randn(2, 4, 2, 6), dim=-1)
    dense, other = (EmbeddingReadout(outputs, torch.full((4,), torch.nan)) for outputs in (first, second))
    coordinates = torch.stack(list(other.coordinates(dense, samples=4000, seed=0)))
    torch.testing.assert_close(coordinates.square().sum(0) / 2, other.divergence(dense), rtol=0.1, atol=0)


def test_a_folder_says_how_texts_become_embeddings(tmp_path: Path) -> None:
    """The default prompt goes before a text, in lower case; 12 tokens stay; the last one is what is pooled."""
    task, model = stored(sentence_transformer(tmp_path, "lasttoken"))
    assert task.length == 12
    (row,) = task.encode(Dataset.from_dict({"text": ["C D"]}))["input_ids"]
    assert task.processor.decode(row[0]) == "[CLS] a a c d [SEP]"
    inputs = task.processor("a a c d", return_tensors="pt")
    with torch.no_grad():
        last = model(**inputs).last_hidden_state[0, -1]
    torch.testing.assert_close(embeddings_of(task, model, ["C D", *TEXTS])[0], last / last.norm())


def test_a_prefix_takes_the_place_of_the_default_prompt(tmp_path: Path) -> None:
    _, model = stored(sentence_transformer(tmp_path))
    task = task_of(model, make_tokenizer("pair"), prefix="b ")
    (row,) = task.encode(Dataset.from_dict({"text": ["c"]}))["input_ids"]
    assert task.processor.decode(row[0]) == "[CLS] b c [SEP]"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"kinds": ("Transformer", "Pooling", "Dense", "Normalize")},
            "must list Transformer and Pooling, .* Dense, Norm",
        ),
        ({"kinds": ("Transformer",)}, "must list Transformer and Pooling, and perhaps Normalize, got Transformer:"),
        ({"kinds": MODULES[:2], "similarity_fn_name": "dot"}, "by their cosine, or normalise them, got .* dot"),
    ],
)
def test_what_a_folder_does_beyond_pooling_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        stored(sentence_transformer(tmp_path, **changes))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("1_Pooling/config.json", {"pooling_mode": ["mean", "cls"]}, "must pool by one of mean, .* got mean, cls"),
        ("1_Pooling/config.json", {"pooling_mode": "weightedmean"}, "got weightedmean"),
        ("1_Pooling/config.json", {"include_prompt": False}, "must pool the tokens of prompts, too"),
        ("modules.json", {}, "must hold a list, got dict"),
        ("modules.json", [{"path": "", "type": "own.Transformer"}], "got own.Transformer: what other modules do"),
    ],
)
def test_files_that_say_something_else_are_refused(file: str, content: Any, message: str, tmp_path: Path) -> None:
    write_json(sentence_transformer(tmp_path) / file, content)
    with pytest.raises(ValueError, match=message):
        stored(tmp_path)


def test_a_module_that_lies_elsewhere_is_refused(tmp_path: Path) -> None:
    modules = json.loads((sentence_transformer(tmp_path) / "modules.json").read_text())
    modules[1]["path"] = "../1_Pooling"
    write_json(tmp_path / "modules.json", modules)
    with pytest.raises(ValueError, match=r"must name a folder beside it for Pooling, got '\.\./1_Pooling'"):
        stored(tmp_path)


def test_files_of_version_6_are_read(tmp_path: Path) -> None:
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"},
        {
            "idx": 1,
            "name": "1",
            "path": "1_Pooling",
            "type": "sentence_transformers.sentence_transformer.modules.pooling.Pooling",
        },
    ]
    write_json(sentence_transformer(tmp_path) / "modules.json", modules)
    write_json(tmp_path / "1_Pooling" / "config.json", {"embedding_dimension": 16, "pooling_mode": "cls"})
    assert stored(tmp_path)[0].files.pooling == "cls"


def test_a_plain_encoder_is_pooled_by_the_mean_or_as_asked() -> None:
    model, tokenizer = embedder(), make_tokenizer("pair")
    inputs = tokenizer("a b", return_tensors="pt")
    with torch.no_grad():
        states = model(**inputs).last_hidden_state[0]
    for settings, expected in (({}, states.mean(0)), ({"pooling": "cls"}, states[0])):
        found = embeddings_of(task_of(model, tokenizer, **settings), model, ["a b", *TEXTS])[0]
        torch.testing.assert_close(found, expected / expected.norm())
    with pytest.raises(ValueError, match="pooling must be one of mean, cls, max, lasttoken, got 'median'"):
        task_of(model, tokenizer, pooling="median")


def test_pooling_that_contradicts_the_folder_is_refused(tmp_path: Path) -> None:
    _, model = stored(sentence_transformer(tmp_path, "cls"))
    with pytest.raises(ValueError, match="the model's own files say pooling cls, got mean; leave it out"):
        task_of(model, make_tokenizer("pair"), pooling="mean")


def test_a_score_is_read_where_columns_name_it() -> None:
    data = Dataset.from_dict({"premise": TEXTS, "hypothesis": TEXTS[::-1], "relatedness": np.arange(8.0)})
    plain = task_of(embedder(), make_tokenizer("pair"))
    assert plain.metrics == ["cosine"] and plain.targets(data, "test") is None
    task, model = task_of(embedder(), make_tokenizer("pair"), columns={"score": "relatedness"}), embedder()
    assert task.metrics == ["spearman"] and task.targets(data, "test") is not None
    (batch,) = batches_of(task, task.encode(data), 100)
    with torch.no_grad():
        scores = task.readout(model, batch).scores()
    ours = embeddings_of(plain, model, TEXTS)
    np.testing.assert_allclose(scores.predicted, (ours * ours.flip(0)).sum(1), atol=1e-6)
    assert scores.reference.tolist() == [*range(8)]
    with pytest.raises(ValueError, match="columns names a score, which takes a text_pair beside text"):
        task_of(embedder(), make_tokenizer("pair"), columns={"text": "premise", "score": "relatedness"})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["1", "2"], "scores must be numbers, got string"),
        ([1.0, float("nan")], "scores must be finite numbers, .* row 1"),
    ],
)
def test_scores_that_are_no_numbers_are_refused(values: list[Any], message: str) -> None:
    data = Dataset.from_dict({"sentence1": ["a", "b"], "sentence2": ["c", "d"], "score": values})
    with pytest.raises(ValueError, match=message):
        task_of(embedder(), make_tokenizer("pair"), columns={"score": "score"}).check(data, "test")


def test_cosines_that_fall_with_the_scores_are_worse_than_chance() -> None:
    """On whatever scale the scores are."""
    task, ones = task_of(embedder(), make_tokenizer("pair"), columns={"score": "score"}), np.ones(4, dtype=np.int64)
    right = Scores(np.zeros(4), ones, np.arange(4) / 4, np.arange(4) * 1.0, np.zeros(4), ones)
    assert below_chance(task, right) is None
    wrong = Scores(np.zeros(4), ones, -np.arange(4) / 4, np.arange(4) * 1.0, np.zeros(4), ones)
    assert below_chance(task, wrong) is not None
    nothing = Scores(np.zeros(4), ones, np.empty(0), np.empty(0), np.zeros(4), 0 * ones)
    assert below_chance(task, nothing) is None


@pytest.mark.parametrize("pooling", ["mean", "cls", "max", "lasttoken"])
def test_masked_embeddings_are_those_of_the_cut_model(pooling: str) -> None:
    model, tokenizer = embedder(), make_tokenizer("pair")
    task, keep = task_of(model, tokenizer, pooling=pooling), keep_for(model, "per_layer")
    with masked(model, masks=keep_masks(model, keep)):
        expected = embeddings_of(task, model, TEXTS)
    torch.testing.assert_close(embeddings_of(task, cut(model, keep, "per_layer"), TEXTS), expected)


def settings_for(folder: Path, model: Path, **task: Any) -> dict[str, Any]:
    rng = np.random.default_rng(moved(0))
    files = {split: str(folder / f"{split}.parquet") for split in ("train", "validation", "test")}
    for path in files.values():
        texts = [[" ".join(rng.choice(list("abcdefghij"), 4)) for _ in range(32)] for _ in range(2)]
        rows = {"sentence1": texts[0], "sentence2": texts[1], "score": rng.random(32)}
        Dataset.from_dict(rows).to_parquet(path)
    return {
        "model": {"name": str(model)},
        "task": {"dataset": {"path": "parquet", "data_files": files}, "batch_size": 8, **task},
    }


@pytest.mark.whole
@pytest.mark.usefixtures("without_figures")
def test_a_folder_of_sentence_transformers_becomes_a_smaller_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = sentence_transformer(tmp_path / "model"), tmp_path / "out"
    asked = settings_for(tmp_path, folder, columns={"score": "score"})
    prune = {"target": {"neurons": 0.5, "heads": 0.5}, "block_size": 8, "layout": "per_layer"}
    search, output = {"rounds": 1, "pulls_per_arm": 1}, {"dir": str(out), "random_seeds": 1}
    result = prune_from_config(check({**asked, "prune": prune, "search": search, "output": output}))
    assert result.report.main_metric == "spearman" and result.report.after.loss == result.report.after.kl > 0

    for file in folder.rglob("*.json"):
        name = file.relative_to(folder)
        if name.name in ("modules.json", "sentence_bert_config.json") or name.parts[0] in ("1_Pooling", "2_Normalize"):
            assert (out / name).read_bytes() == file.read_bytes()
    task, again = stored(out)
    torch.testing.assert_close(embeddings_of(task, again, TEXTS), embeddings_of(task, result.model, TEXTS))
    card = ModelCard.load(out / "README.md")
    assert card.data.library_name == "sentence-transformers" and card.data.pipeline_tag == "sentence-similarity"
    assert {"sentence-similarity", "feature-extraction", "pruned"} <= {*card.data.tags}
    assert "model = SentenceTransformer(" in card.text

    assert main(["verify", str(out), "--base", str(folder)]) == 0, capsys.readouterr().out
    (out / "1_Pooling" / "config.json").write_text('{"pooling_mode": "cls"}')
    capsys.readouterr()
    assert main(["verify", str(out), "--base", str(folder)]) == 1
    assert "1_Pooling/config.json is another" in capsys.readouterr().out


def test_a_plain_encoder_gets_files_that_sentence_transformers_reads() -> None:
    files = task_of(embedder(), make_tokenizer("pair"), pooling="cls").side_files()
    kinds = [(module["type"].rpartition(".")[2], module["path"]) for module in json.loads(files["modules.json"])]
    assert kinds == [("Transformer", ""), ("Pooling", "1_Pooling")]
    pooling = json.loads(files["1_Pooling/config.json"])
    assert pooling["word_embedding_dimension"] == 16
    assert [flag for flag, on in pooling.items() if on is True] == ["pooling_mode_cls_token"]


def test_a_stored_embedder_is_measured_by_scores_alone(tmp_path: Path) -> None:
    folder = sentence_transformer(tmp_path / "model")
    scored = settings_for(tmp_path, folder, columns={"score": "score"})
    _, figures = evaluate_checkpoint(EvaluateConfig.model_validate(scored))
    assert -1 <= figures.metrics["spearman"] <= 1 and np.isnan(figures.loss)
    with pytest.raises(ValueError, match="metric 'cosine' compares with the dense model, which is not here"):
        evaluate_checkpoint(EvaluateConfig.model_validate(settings_for(tmp_path, folder)))


def test_the_encoder_of_another_head_is_taken_where_asked(tmp_path: Path) -> None:
    """As sentence-transformers does, whatever head the weights were saved with."""
    torch.manual_seed(moved(0))
    whole = BertForMaskedLM(bert_config()).eval()
    whole.save_pretrained(tmp_path)
    make_tokenizer("pair").save_pretrained(tmp_path)
    asked = check(
        {
            "model": {"name": str(tmp_path)},
            "task": {"type": "sentence_embedding", "dataset": {"path": "in-memory"}},
            "prune": {"target": {"neurons": 0.5}},
            "output": {"dir": str(tmp_path / "out")},
        }
    )
    model, _ = load_model(asked.model, asked.task)
    assert type(model) is BertModel and not model.pooler.dense.weight.any()
    inputs = make_tokenizer("pair")("a b c", return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).last_hidden_state, whole.bert(**inputs).last_hidden_state)


@pytest.mark.parametrize(("asked", "further"), [(None, 6), (1, 1), (0, 0)])
def test_refits_read_three_times_as_many_rows_unless_told(asked: int | None, further: int) -> None:
    task = task_of(embedder(), make_tokenizer("pair"))
    settings = TaskConfig(dataset=DatasetConfig(path="in-memory"), calibration_examples=2, refit_examples=asked)
    batches = calibration_batches(settings, task, Dataset.from_dict({"sentence": TEXTS}), 0)
    assert [sum(batch.examples for batch in batches[part]) for part in ("calibration", REFIT)] == [2, further]
