import re
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries

from hf_mabprune.artifacts.base_card import Origin, origin_of
from hf_mabprune.artifacts.card import write_card
from hf_mabprune.artifacts.eval_results import eval_results
from hf_mabprune.artifacts.redaction import public_config
from hf_mabprune.config import check
from hf_mabprune.evaluation.figures import ModelFigures, RandomFigures
from hf_mabprune.evaluation.report import Report
from tests.artifacts.reports import HUB, config, figures, kept_in, make_report

ROOT = Path(__file__).parents[2]
LOCAL = {
    "path": "parquet",
    "data_files": {"train": "/home/jo doe/sst2/train.parquet", "test": ["data/a/test.parquet", "C:\\data\\b.parquet"]},
}


@pytest.fixture
def report() -> Report:
    return make_report()


def body(path: Path) -> str:
    return str(ModelCard.load(path).text)


def code_blocks(text: str, language: str) -> list[str]:
    return [block.split("```")[0] for block in text.split(f"```{language}\n")[1:]]


def test_metadata_carries_the_run(report: Report, tmp_path: Path) -> None:
    path = write_card(report, config(), tmp_path, origin=Origin("apache-2.0", language=["en"]))
    assert path == tmp_path / "README.md"
    data = ModelCard.load(path).data
    assert data.base_model == "textattack/bert-base-uncased-SST-2"
    assert (data.license, data.language, data["base_model_relation"]) == ("apache-2.0", ["en"], "finetune")
    assert data.library_name == "transformers"
    assert data.pipeline_tag == "text-classification"
    assert data.tags == ["pruned", "structured-pruning", "multi-armed-bandit", "hf_mabprune"]
    assert data.datasets is None, "nothing was trained, and the Hub takes what is named there for training data"
    assert data.metrics == ["accuracy", "f1"]
    assert data.model_name == "bert-base-uncased-SST-2-pruned"


def test_data_that_a_model_was_trained_on_are_named_as_such(report: Report, tmp_path: Path) -> None:
    trained = replace(report, recovery={"steps": 10})
    assert ModelCard.load(write_card(trained, config(), tmp_path)).data.datasets == ["nyu-mll/glue"]


def test_calibration_data_are_named_as_such(report: Report, tmp_path: Path) -> None:
    link = "[nyu-mll/glue](https://huggingface.co/datasets/nyu-mll/glue) (`sst2`)"
    assert f"| calibration data | `train[100:]` of {link}, at most 1,024 examples |" in body(
        write_card(report, config(), tmp_path)
    )


def test_a_license_that_the_hub_has_no_name_for_keeps_its_own_and_its_address(report: Report, tmp_path: Path) -> None:
    origin = origin_of(
        {
            "license": "other",
            "license_name": "gemma",
            "license_link": "LICENSE.md",
            "language": "en",
            "model-index": [{}],
        },
        "google/gemma",
    )
    data = ModelCard.load(write_card(report, config(), tmp_path, origin=origin)).data
    assert (data.license, data.license_name, data.language) == ("other", "gemma", ["en"])
    assert data.license_link == "https://huggingface.co/google/gemma/blob/main/LICENSE.md"


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({}, Origin()),
        ({"license": ["mit"], "language": {"en": 1}}, Origin(language=[])),
        ({"license": "mit", "license_name": "x", "license_link": "y"}, Origin("mit", language=[])),
        (
            {"language": ["en", "zh-Hant", "no <b>", False, "multilingual"]},
            Origin(language=["en", "zh-Hant", "multilingual"]),
        ),
        ({"license": "other"}, Origin("other", license_link="https://huggingface.co/a/b", language=[])),
        (
            {"license": "other", "license_name": "<b>", "license_link": "https://me:secret@x.example/terms?key=1"},
            Origin("other", license_link="https://x.example/terms", language=[]),
        ),
        (
            {"license": "other", "license_link": "../../etc/passwd"},
            Origin("other", license_link="https://huggingface.co/a/b", language=[]),
        ),
    ],
)
def test_of_the_base_card_only_what_holds_for_both_is_taken_over(metadata: dict[str, Any], expected: Origin) -> None:
    found = origin_of(metadata, "a/b")
    assert replace(found, language=list(found.language)) == replace(expected, language=list(expected.language))


def test_the_idea_is_cited_where_a_bandit_chose(report: Report, tmp_path: Path) -> None:
    text = body(write_card(report, config(), tmp_path))
    assert "https://arxiv.org/abs/2606.07615" in text and "eprint = {2606.07615}" in text
    search = replace(report.search, policy={}, rule={}, criterion="magnitude")
    assert "2606.07615" not in body(write_card(replace(report, search=search), config(), tmp_path))


def test_the_commit_is_pinned_where_code_of_the_repository_runs(report: Report, tmp_path: Path) -> None:
    text = body(write_card(report, config(), tmp_path, repo_id="me/x", commit="0123abc"))
    with_package, without = code_blocks(text, "python")
    assert "revision" not in with_package and 'revision = "0123abc"' in without
    for line in filter(lambda line: "trust_remote_code" in line, without.splitlines()):
        assert "revision=revision" in line
    compile(without, "card", "exec")
    uniform = body(write_card(replace(report, layout="uniform"), config(), tmp_path, repo_id="me/x", commit="0123abc"))
    assert "0123abc" not in uniform


def test_the_result_is_there_for_benchmarks_and_reads_back(report: Report) -> None:
    settings = check(yaml.safe_load(config(dataset={**HUB, "revision": "a" * 40})))
    text = eval_results(report, settings, "me/x")
    assert text is not None
    (entry,) = parse_eval_result_entries(yaml.safe_load(text))
    assert (entry.dataset_id, entry.task_id, entry.dataset_revision) == ("nyu-mll/glue", "sst2", "a" * 40)
    assert entry.value == report.after.metrics["accuracy"] != report.before.metrics["accuracy"]
    assert entry.source_url == "https://huggingface.co/me/x/blob/main/mabprune/report.json"
    assert entry.notes == "accuracy on split validation, pruned with hf_mabprune"
    plain = eval_results(report, check(yaml.safe_load(config())))
    assert plain is not None and "source" not in plain and "revision" not in plain, "abc123 is no commit"
    assert eval_results(report, check(yaml.safe_load(config(dataset=LOCAL)))) is None
    broken = replace(report.after, metrics={"accuracy": float("nan"), "f1": 0.5})
    assert eval_results(replace(report, after=broken), settings) is None


def test_evaluation_results_are_the_reports(report: Report, tmp_path: Path) -> None:
    results = ModelCard.load(write_card(report, config(), tmp_path)).data.eval_results
    assert {result.metric_type: result.metric_value for result in results} == report.after.metrics
    for result in results:
        assert result.task_type == "text-classification"
        assert (result.dataset_type, result.dataset_config) == ("nyu-mll/glue", "sst2")
        assert (result.dataset_split, result.dataset_revision) == ("validation", "abc123")


def test_metrics_that_are_no_number_are_left_out_of_the_metadata(report: Report, tmp_path: Path) -> None:
    after = replace(report.after, metrics={"accuracy": 0.9, "f1": float("nan")})
    results = ModelCard.load(write_card(replace(report, after=after), config(), tmp_path)).data.eval_results
    assert [result.metric_type for result in results] == ["accuracy"]


def test_images_are_no_tokens(report: Report, tmp_path: Path) -> None:
    report = replace(report, task="image_classification", layout="uniform", sequence_length=0)
    text = body(write_card(report, config(), tmp_path))
    (snippet,) = code_blocks(text, "python")
    assert "from transformers import AutoModelForImageClassification, AutoImageProcessor\n" in snippet
    assert "\nprocessor = AutoImageProcessor.from_pretrained(checkpoint)" in snippet
    assert "MACs are for one\nexample." in text
    assert "19,500,000 forward examples, 41.2 s" in text and "token" not in text.lower().replace("image_class", "")


def test_encoder_decoders_keep_their_tokenizer(report: Report, tmp_path: Path) -> None:
    text = body(write_card(replace(report, task="seq2seq"), config(), tmp_path))
    for snippet in code_blocks(text, "python"):
        assert "from transformers import AutoModelForSeq2SeqLM, AutoTokenizer\n" in snippet
        assert "\ntokenizer = AutoTokenizer.from_pretrained(checkpoint" in snippet


def test_language_model(report: Report, tmp_path: Path) -> None:
    def perplexity(value: float) -> ModelFigures:
        return replace(report.after, metrics={"perplexity": value}, intervals={"perplexity": (value - 1, value + 1)})

    report = replace(
        report, task="causal_lm", main_metric="perplexity", greater_is_better=False,
        before=perplexity(20.0), after=perplexity(23.456), random=[RandomFigures(0, perplexity(90.0))],
    )  # fmt: skip
    path = write_card(report, config(), tmp_path)
    data, text = ModelCard.load(path).data, body(path)
    assert data.pipeline_tag == data.eval_results[0].task_type == "text-generation"
    assert "AutoModelForCausalLM.from_pretrained(checkpoint)" in text
    assert "23.46 (22.46 to 24.46)" in text
    assert "perplexity: lower is better" in text
    assert "better perplexity than 1 of 1" in text


def test_an_embedder_has_one_distance_for_loss_and_kl(report: Report, tmp_path: Path) -> None:
    shown = body(write_card(replace(report, task="sentence_embedding"), config(), tmp_path))
    assert "Loss and KL are both\nthe mean distance from the dense model's embeddings, 1 - cosine. MACs" in shown
    assert "divergence of the outputs" not in shown
    assert 'model = SentenceTransformer("path/to/this/folder"' in shown


def test_unknown_license_is_left_out(report: Report, tmp_path: Path) -> None:
    assert "license" not in ModelCard.load(write_card(report, config(), tmp_path)).data.to_dict()


@pytest.mark.parametrize("name", ["/home/jo/models/bert", "C:\\models\\bert", "./bert", "a/b/bert", "~/bert"])
def test_local_model_is_shown_by_its_last_part_only(report: Report, tmp_path: Path, name: str) -> None:
    path = write_card(replace(report, model=name), config(model=name), tmp_path)
    data = ModelCard.load(path).data
    assert data.base_model is None
    assert data.model_name == "bert-pruned"
    assert "This is `bert` with" in body(path)
    assert name not in path.read_text()


def test_existing_folder_is_no_base_model(report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs" / "bert").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    path = write_card(replace(report, model="runs/bert"), config(model="runs/bert"), tmp_path)
    assert ModelCard.load(path).data.base_model is None
    assert "runs/bert" not in path.read_text()


def test_class_name_of_a_model_made_in_memory_is_no_base_model(report: Report, tmp_path: Path) -> None:
    name = "BertForSequenceClassification"
    path = write_card(replace(report, model=name), config(model=name), tmp_path)
    assert ModelCard.load(path).data.base_model is None


def test_base_model_can_be_given(report: Report, tmp_path: Path) -> None:
    report = replace(report, model="/models/bert")
    path = write_card(report, config(model="/models/bert"), tmp_path, base_model="google/bert")
    assert ModelCard.load(path).data.base_model == "google/bert"
    assert "[google/bert](https://huggingface.co/google/bert)" in body(path)
    path = write_card(report, config(model="/models/bert"), tmp_path, base_model="/models/bert")
    assert ModelCard.load(path).data.base_model is None


@pytest.mark.parametrize(
    ("dataset", "shown"),
    [
        (LOCAL, "local parquet files"),
        ({"path": "in-memory"}, "data given in Python"),
        ({"path": "sample-text"}, "a sample of WikiText-2, CC BY-SA 3.0"),
    ],
)
def test_data_that_are_not_on_the_hub(report: Report, tmp_path: Path, dataset: dict[str, Any], shown: str) -> None:
    path = write_card(replace(report, dataset=dataset["path"]), config(dataset=dataset), tmp_path)
    data = ModelCard.load(path).data
    assert data.datasets is None
    assert {result.dataset_name for result in data.eval_results} == {shown}
    assert f"`validation` of {shown}" in body(path)


def test_no_local_path_leaks(report: Report, tmp_path: Path) -> None:
    report = replace(
        report,
        layout_reason="auto: see /home/jo/notes.txt",
        warnings=["/home/jo/models/x is odd, /scratch too", "C:\\Users\\jo\\y is odd"],
        search=replace(report.search, policy={"name": "ucb1", "prior": "/home/jo/prior.npy"}),
    )
    settings = config(dataset=LOCAL, output={"dir": "/home/jo/runs/sst2"})
    text = write_card(report, settings, tmp_path).read_text()
    for leak in ("/home", "jo", "C:", "Users", "data/a", "/scratch", str(tmp_path)):
        assert leak not in text, leak
    shown = yaml.safe_load(code_blocks(text, "yaml")[0])
    assert shown["task"]["dataset"]["data_files"] == {
        "train": "train.parquet",
        "test": ["test.parquet", "b.parquet"],
    }
    assert shown["output"]["dir"] == "sst2"
    assert "- Warning of the run: x is odd, scratch too" in text


def test_urls_lose_credentials(report: Report, tmp_path: Path) -> None:
    dataset = {"path": "json", "data_files": {"test": "https://me:secret@host.org/d/t.json?token=secret"}}
    text = write_card(report, config(dataset=dataset), tmp_path).read_text()
    assert "https://host.org/d/t.json" in text
    assert "secret" not in text


def test_config_is_shown_exactly(report: Report, tmp_path: Path) -> None:
    hub = HUB | {"data_files": {"test": "data/test.parquet"}}  # paths inside the Hub's repository stay
    settings = config(dataset=hub)
    text = write_card(report, settings, tmp_path).read_text()
    assert code_blocks(text, "yaml") == [settings]
    assert check(yaml.safe_load(code_blocks(text, "yaml")[0])) == check(yaml.safe_load(settings))
    assert "only the last part is shown" not in text


def test_per_layer_shows_both_ways_to_load(report: Report, tmp_path: Path) -> None:
    package, remote = code_blocks(body(write_card(report, config(), tmp_path, repo_id="me/small")), "python")
    assert package.startswith("import hf_mabprune\n")
    assert "trust_remote_code" not in package
    assert "import hf_mabprune" not in remote
    assert "AutoModelForSequenceClassification.from_pretrained(checkpoint, trust_remote_code=True)" in remote
    assert package.count('checkpoint = "me/small"') == remote.count('checkpoint = "me/small"') == 1


def test_uniform_loads_with_the_stock_class(report: Report, tmp_path: Path) -> None:
    (block,) = code_blocks(body(write_card(replace(report, layout="uniform"), config(), tmp_path)), "python")
    assert "AutoModelForSequenceClassification.from_pretrained(checkpoint)" in block
    assert "trust_remote_code" not in block and "hf_mabprune" not in block


@pytest.mark.parametrize("layout", ["uniform", "per_layer"])
def test_snippets_are_python(report: Report, tmp_path: Path, layout: str) -> None:
    text = body(write_card(replace(report, layout=layout), config(), tmp_path))
    blocks = code_blocks(text, "python")
    assert len(blocks) == {"uniform": 1, "per_layer": 2}[layout]
    for block in blocks:
        compile(block, "card", "exec")


def test_repo_id_names_the_card(report: Report, tmp_path: Path) -> None:
    path = write_card(report, config(), tmp_path, repo_id="me/small")
    assert ModelCard.load(path).data.model_name == "small"
    assert "# small\n" in body(path)


def test_results_table_has_every_row(report: Report, tmp_path: Path) -> None:
    text = body(write_card(report, config(), tmp_path))
    rows = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("|")}
    assert [name for name in rows if name in ("before", "**after**") or name.startswith("random")] == [
        "before", "**after**", "random 0", "random 1",
    ]  # fmt: skip
    after = [cell.strip() for cell in rows["**after**"].split("|")[2:-1]]
    assert after == [
        "70.00", "7,000.00", "0.9190 (0.9090 to 0.9290)", "0.8990 (0.8190 to 0.9190)", "0.2300", "0.0123", "5.1",
        "280.0",
    ]  # fmt: skip
    assert "0.8500 (0.8400 to 0.8600)" in rows["random 1"] and "0.4100" in rows["random 1"]


def test_columns_without_figures_are_left_out(report: Report, tmp_path: Path) -> None:
    def bare(one: ModelFigures) -> ModelFigures:
        return replace(one, latency_ms=None, checkpoint_bytes=None)

    random = [RandomFigures(draw.seed, bare(draw.figures)) for draw in report.random]
    report = replace(report, before=bare(report.before), after=bare(report.after), random=random)
    text = body(write_card(report, config(), tmp_path))
    assert "| loss | KL |\n" in text
    assert "Latency" not in text


@pytest.mark.parametrize(
    ("accuracy", "loss", "verdict"),
    [
        (0.70, 0.24, "better accuracy than 2 of 2, lower loss than 2 of 2.\n"),
        (0.905, 0.24, "better accuracy than 2 of 2, lower loss than 2 of 2. The 95% interval of the difference"),
        (0.95, 0.24, "better accuracy than 0 of 2, lower loss than 2 of 2. The search is not shown to beat chance"),
        (0.70, 0.225, "better accuracy than 2 of 2, lower loss than 1 of 2. The search is not shown to beat chance"),
    ],
)
def test_comparison_with_random_is_plain(
    report: Report, tmp_path: Path, accuracy: float, loss: float, verdict: str
) -> None:
    behind = (0.919 - accuracy, 0.899 - accuracy, 0.939 - accuracy)
    draws = [RandomFigures(seed, replace(figures(accuracy, loss + 0.01 * seed), behind=behind)) for seed in range(2)]
    text = body(write_card(replace(report, random=draws), config(), tmp_path))  # accuracy 0.919, loss 0.23
    assert verdict in text


def test_sizes_per_layer(report: Report, tmp_path: Path) -> None:
    text = body(write_card(report, config(), tmp_path))
    assert "| layer | FFN neurons | attention heads |" in text
    assert "| 0 | 512 of 3,072 | 12 of 12 |\n| 1 | 3,072 of 3,072 | 5 of 12 |" in text
    assert "30% of its FFN and attention parameters removed (70,000,000 of 100,000,000 are left" in text


def test_only_heads(report: Report, tmp_path: Path) -> None:
    text = body(write_card(replace(report, kept=kept_in("bert", heads=[(5, 12)])), config(), tmp_path))
    assert "| layer | attention heads |" in text
    assert "whole attention heads, picked" in text
    assert "FFN neurons" not in text


def test_many_layers_are_folded(report: Report, tmp_path: Path) -> None:
    kept = kept_in("bert", neurons=[(8, 16)] * 24)
    text = body(write_card(replace(report, kept=kept), config(), tmp_path))
    assert "<summary>24 layers</summary>" in text
    assert "| 23 | 8 of 16 |" in text


def test_whole_experts(report: Report, tmp_path: Path) -> None:
    kept = kept_in("mixtral", heads=[(8, 8), (8, 8)], experts=[(6, 8), (8, 8)])
    text = body(write_card(replace(report, kept=kept), config(), tmp_path))
    assert "| layer | attention heads | experts |" in text
    assert "| 0 | 8 of 8 | 6 of 8 |\n| 1 | 8 of 8 | 8 of 8 |" in text
    assert "whole experts, picked" in text


def test_neurons_of_the_experts_of_a_layer_are_summed(report: Report, tmp_path: Path) -> None:
    kept = {"neuron": {f"layers.{layer}.mlp.experts.{expert}": (8, 16) for layer in (2, 10) for expert in range(3)}}
    text = body(write_card(replace(report, kept=kept), config(), tmp_path))
    assert "| 2 | 24 of 48 |\n| 10 | 24 of 48 |" in text


def test_layers_of_two_stacks(report: Report, tmp_path: Path) -> None:
    ffn, attention = "{}.block.0.layer.{}.DenseReluDense.wo", "decoder.block.0.layer.{}Attention.o"
    kept = {
        "neuron": {ffn.format("encoder", 1): (9, 16), ffn.format("decoder", 2): (8, 16)},
        "head": {attention.format("0.Self"): (1, 4), attention.format("1.EncDec"): (3, 4)},
    }
    text = body(write_card(replace(report, kept=kept), config(), tmp_path))
    assert "| encoder 0 | 9 of 16 |  |\n| decoder 0 | 8 of 16 | 4 of 8 |" in text


def test_figures_that_are_there_are_shown(report: Report, tmp_path: Path) -> None:
    assert "## Figures" not in body(write_card(report, config(), tmp_path))
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "effects.png").touch()
    text = body(write_card(report, config(), tmp_path))
    assert "(figures/effects.png)" in text
    assert "kept_widths.png" not in text


def test_cost_and_provenance(report: Report, tmp_path: Path) -> None:
    text = body(write_card(report, config(), tmp_path))
    for row in (
        "| policy | name `ucb1`, c `0.5` |",
        "| reward | `kl` |",
        "| search | 2,448 arms, 9,216 pulls in 1 round |",
        "| cost | 19,500,000 forward tokens, 41.2 s on 2 processes (`cpu`) |",
        "| seed | 7 |",
        "| versions | torch 2.9.9, transformers 5.88.0 |",
        "| checkpoint read back | logits differ by at most 2e-06 from the model in memory |",
    ):
        assert row in text
    assert "judged on `train[100:]` of [nyu-mll/glue]" in text


def test_a_dequantised_base_is_said(report: Report, tmp_path: Path) -> None:
    settings, base = yaml.safe_load(config()), "textattack/bert-base-uncased-SST-2"
    settings["model"] = {"name": base, "gguf_file": "it-Q4_K_M.gguf", "dequantize": True}
    path = write_card(report, check(settings).to_yaml(), tmp_path)
    said = "file `it-Q4_K_M.gguf`, whose quantised weights were dequantised first |"
    assert said in body(path) and ModelCard.load(path).data.base_model == base


@pytest.mark.parametrize(
    ("criterion", "row"), [("taylor", "name `taylor`"), ({"name": "taylor", "order": 2}, "name `taylor`, order `2`")]
)
def test_without_a_policy_the_criterion_is_named(
    report: Report, tmp_path: Path, criterion: str | dict[str, Any], row: str
) -> None:
    search = replace(report.search, policy={}, criterion=criterion)
    path = write_card(replace(report, search=search), config(), tmp_path)
    text = path.read_text()
    assert "picked by the criterion `taylor` with hf_mabprune" in text
    assert f"| criterion | {row} |" in text
    assert "| policy |" not in text and "| removal rule |" not in text and "bandit" not in text
    assert ModelCard.load(path).data.tags == ["pruned", "structured-pruning", "hf_mabprune"]


def test_the_removal_rule_is_named(report: Report, tmp_path: Path) -> None:
    search = replace(report.search, rule={"name": "refit"})
    text = body(write_card(replace(report, search=search), config(), tmp_path))
    assert "| policy | name `ucb1`, c `0.5` |\n| removal rule | name `refit` |" in text


def test_card_needs_no_network(report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the card reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert write_card(report, config(), tmp_path).is_file()


def test_broken_config_is_refused(report: Report, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="missing key 'model'"):
        write_card(report, "seed: 0\n", tmp_path)


def test_a_criterion_that_chose_alone_is_a_row(report: Report, tmp_path: Path) -> None:
    alone = {"kfac_obs": replace(figures(0.9, 0.24), behind=(0.019, -0.001, 0.039))}
    text = body(write_card(replace(report, alone=alone), config(), tmp_path))
    (row,) = [line for line in text.splitlines() if line.startswith("| kfac\\_obs alone |")]
    assert row.endswith("| +0.0190 (-0.0010 to +0.0390) |")


def test_the_example_in_the_repository_is_a_card_of_today(report: Report, tmp_path: Path) -> None:
    """It is the README.md that `make prune` leaves in runs/quickstart, of the same form as a card that is written now,
    with the settings of today's quickstart, of which new ones have their defaults."""
    stored = ROOT / "model_cards" / "quickstart-sst2.md"
    quickstart = check(yaml.safe_load((ROOT / "configs" / "quickstart.yaml").read_text()))
    (settings,) = code_blocks(body(stored), "yaml")
    assert check(yaml.safe_load(settings)) == check(yaml.safe_load(public_config(quickstart.to_yaml())))

    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "effects.png").touch()
    local = replace(report, model="/models/model", alone={"kfac_obs": figures(0.9, 0.2)})
    fresh = write_card(local, config(model="/models/model", dataset=LOCAL), tmp_path)
    for form in (r"^#+ .*$", r"^\| ([a-z][\w ,]+) \|"):
        old, new = (set(re.findall(form, body(path), re.M)) for path in (stored, fresh))
        assert new <= old | {"random 0", "random 1"}, "make it anew: make prune"
    assert set(ModelCard.load(stored).data.to_dict()) == set(ModelCard.load(fresh).data.to_dict())
