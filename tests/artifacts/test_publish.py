"""Pushes by the real client, in a process of its own, to a Hub on this machine that speaks the real protocol."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from huggingface_hub import parse_eval_result_entries
from safetensors.torch import load_file, save_file

from hf_mabprune.artifacts import checksums
from hf_mabprune.artifacts import publish as hub
from hf_mabprune.artifacts.publishable import check_complete
from hf_mabprune.checkpoints.save import save_checkpoint
from hf_mabprune.evaluation.report import Report
from hf_mabprune.surgery.cut import Layout, cut
from tests.artifacts.hub_server import HubServer
from tests.artifacts.reports import config, make_report
from tests.problems import selection
from tests.tasks.tiny_tasks import make_tokenizer
from tests.tiny_models import inputs_for, tiny_model

pytestmark = pytest.mark.whole
TOKEN, READ_TOKEN, WRONG_TOKEN = "hf_test_writes_0123", "hf_test_reads_0123", "hf_test_unknown_0123"
AUTO = "AutoModelForSequenceClassification"
BASE = "textattack/bert-base-uncased-SST-2"
BASE_CARD = b"---\nlicense: apache-2.0\nlanguage: en\nmodel-index: [{name: dense, results: []}]\n---\n# BERT\n"
RESULTS = ".eval_results/hf_mabprune.yaml"
CLIENT = """
import json, os, sys
from hf_mabprune.artifacts.publish import push_checkpoint
token = os.environ["HF_TOKEN"]
for line in sys.stdin:
    call = json.loads(line)
    os.environ["HF_TOKEN"] = token if call.pop("logged_in") else ""
    try:
        reply = {"url": push_checkpoint(**call)}
    except Exception as error:
        reply = {"error": type(error).__name__, "line": str(error)}
    print(json.dumps(reply), flush=True)
"""
LOADER = """
import json, sys, torch, transformers
for name, options in json.loads(sys.argv[1]).items():
    ids = json.loads(sys.argv[2])
    model = transformers.AutoModelForSequenceClassification.from_pretrained(name, **options).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(name, **options)
    assert tokenizer("a b")["input_ids"]
    with torch.no_grad():
        logits = model(**{key: torch.tensor(value) for key, value in ids.items()}).logits
    print(json.dumps([type(model).__name__, "hf_mabprune" in sys.modules, logits.tolist()]))
"""


class Client:
    """A process that pushes on demand."""

    def __init__(self, environment: dict[str, str], log: Path) -> None:
        self.log = log
        self.process = subprocess.Popen(
            [sys.executable, "-c", CLIENT], env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log.open("w"),
        )  # fmt: skip

    def ask(self, folder: Path, repo_id: str, logged_in: bool = True, **options: Any) -> dict[str, str]:
        assert self.process.stdin is not None and self.process.stdout is not None
        call = {"folder": str(folder), "repo_id": repo_id, "logged_in": logged_in, **options}
        self.process.stdin.write(json.dumps(call) + "\n")
        self.process.stdin.flush()
        reply = self.process.stdout.readline()
        assert reply, self.log.read_text()
        return dict(json.loads(reply))

    def push(self, folder: Path, repo_id: str, **options: Any) -> str:
        reply = self.ask(folder, repo_id, **options)
        assert "url" in reply, reply
        return reply["url"]

    def refused(self, folder: Path, repo_id: str = "me/new", **options: Any) -> tuple[str, str]:
        """The name of the error and its one line, in which no token is."""
        reply = self.ask(folder, repo_id, **options)
        line = reply["line"]
        assert line and "\n" not in line
        for token in (TOKEN, READ_TOKEN, WRONG_TOKEN):
            assert token not in line
        return reply["error"], line


@pytest.fixture(scope="module")
def server() -> Iterator[HubServer]:
    server = HubServer({TOKEN: ("me", True), READ_TOKEN: ("me", False)})
    server.add_repo(BASE, {"README.md": BASE_CARD, RESULTS: b"- dataset: {id: a/b}\n  value: 1\n"})
    yield server
    server.close()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def environment(server: HubServer, home: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not re.match("HF_|HUGGING|.*_proxy$", name, re.I)}
    return kept | {
        "HF_ENDPOINT": server.url,
        "HF_HOME": str(home),
        "HF_TOKEN": TOKEN,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }


@pytest.fixture(scope="module")
def client(environment: dict[str, str], home: Path) -> Iterator[Client]:
    client = Client(environment, home / "client.log")
    yield client
    assert client.process.stdin is not None
    client.process.stdin.close()
    client.process.wait(timeout=30)
    assert TOKEN not in client.log.read_text()


def save_run(folder: Path, layout: Layout, report: Report, config_yaml: str) -> torch.Tensor:
    """The folder of a run with a tiny pruned model, and what must not be published beside it; gives the logits."""
    model = tiny_model("bert", AUTO)
    small = cut(model, selection(model, layout), layout)
    folder.mkdir()
    save_checkpoint(small, folder, make_tokenizer("pair"), torch.float32)
    (folder / "generation_config.json").write_text("{}")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    sites = ["encoder.layer.0.output.dense", "encoder.layer.1.attention.output.dense"]
    arms = pd.DataFrame({"site": sites, "kind": ["neuron", "head"], "index": [0, 0], "kept": [True, False]})
    (folder / "mabprune").mkdir()
    (folder / "figures").mkdir()
    (folder / "figures" / "effects.png").write_bytes(b"\x89PNG of effects")
    (folder / "mabprune" / "report.json").write_text(report.to_json())
    (folder / "mabprune" / "config.yaml").write_text(config_yaml)
    arms.to_parquet(folder / "mabprune" / "arms.parquet")
    (folder / "README.md").write_text("the local card")
    for name in (".hidden", "figures/.hidden", "mabprune/search_state.npz", "a.lock", "model.partial", ".git/HEAD"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("stays here")
    with torch.no_grad():
        return small(**inputs_for(small, AUTO)).logits


def hashes(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def metadata(card: str) -> dict[str, Any]:
    return dict(yaml.safe_load(card.split("---\n")[1]))


@pytest.fixture(scope="module")
def uniform(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.Tensor]:
    """From a model on the Hub."""
    folder = tmp_path_factory.mktemp("uniform") / "run"
    return folder, save_run(folder, "uniform", replace(make_report(), layout="uniform"), config())


@pytest.fixture(scope="module")
def per_layer(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.Tensor]:
    """From a local folder, with its path wherever a path can be."""
    folder = tmp_path_factory.mktemp("per_layer")
    base, report = folder / "base", make_report()
    base.mkdir()
    (base / "README.md").write_text("---\nlicense: mit\n---\n")
    report = replace(
        report, model=str(base), dataset=str(folder / "data"), layout_reason=f"see {folder}/notes",
        warnings=[f"{folder}/x is odd"], search=replace(report.search, policy={"prior": f"{folder}/p"}),
    )  # fmt: skip
    data = {"path": "parquet", "data_files": {"test": f"{folder}/test.parquet"}}
    text = config(model=str(base), dataset=data, output={"dir": str(folder / "run")})
    return folder / "run", save_run(folder / "run", "per_layer", report, text)


def load_back(environment: dict[str, str], home: Path, models: dict[str, Any]) -> list[Any]:
    """What a fresh process without a token makes of published models."""
    inputs = {name: tensor.tolist() for name, tensor in inputs_for(tiny_model("bert", AUTO), AUTO).items()}
    done = subprocess.run(
        [sys.executable, "-c", LOADER, json.dumps(models), json.dumps(inputs)],
        env=environment | {"HF_TOKEN": ""}, cwd=home, text=True, capture_output=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_run_is_published_and_loads_back(
    server: HubServer,
    client: Client,
    environment: dict[str, str],
    home: Path,
    tmp_path: Path,
    uniform: tuple[Path, torch.Tensor],
    per_layer: tuple[Path, torch.Tensor],
) -> None:
    before = [hashes(folder) for folder, _ in (uniform, per_layer)]
    url = client.push(uniform[0], "me/uniform", message="First")
    client.push(per_layer[0], "per-layer", base_model="google/bert")  # under the token's owner
    assert [hashes(folder) for folder, _ in (uniform, per_layer)] == before

    first, commit = server.repos["me/uniform"].branches["main"]
    assert url == f"{server.url}/me/uniform/commit/{commit.oid}"
    assert commit.message == "First"
    here = {name for name in before[0] if "hidden" not in name and "search_state" not in name}
    here -= {"a.lock", "model.partial", ".git/HEAD"}
    assert set(commit.files) - set(first.files) == here | {"mabprune/SHA256SUMS", RESULTS}
    assert {"generation_config.json", "chat_template.jinja", "tokenizer.json", "figures/effects.png"} <= here

    written_again = {"README.md", "mabprune/report.json", "mabprune/config.yaml", "mabprune/SHA256SUMS", RESULTS}
    for (folder, _), name in ((uniform, "me/uniform"), (per_layer, "me/per-layer")):
        again = server.rebuild(name, tmp_path / name)
        for path in set(hashes(again)) - written_again - {".gitattributes"}:
            assert (again / path).read_bytes() == (folder / path).read_bytes(), path
        binary = (".safetensors", ".parquet", ".png", "")
        text = "".join(path.read_text() for path in again.rglob("*") if path.suffix not in binary)
        for leak in (str(folder.parent), str(home), "/tmp/", "/home/"):
            assert leak not in text
        assert Report.from_json(again / "mabprune" / "report.json").after == make_report().after
        assert checksums.faults(again, again / "mabprune" / "SHA256SUMS") == [], "what is downloaded can be checked"
    assert "modeling_pruned.py" in server.repos["me/per-layer"].at("main").files
    large = {op["value"]["path"] for op in commit.operations if op["key"] == "lfsFile"}
    assert large == {"model.safetensors", "mabprune/arms.parquet"}
    assert not any("authorization" in headers for _, path, headers in server.requests if "/storage/" in path)

    loaded = load_back(environment, home, {"me/uniform": {}, "me/per-layer": {"trust_remote_code": True}})
    for (name, package, logits), (_, expected) in zip(loaded, (uniform, per_layer), strict=True):
        assert not package
        assert name.endswith("BertForSequenceClassification")
        torch.testing.assert_close(torch.tensor(logits), expected, rtol=0, atol=1e-6)
    assert loaded[1][0].startswith("Mabprune")


def test_the_card_is_made_for_its_repository(
    server: HubServer, client: Client, uniform: tuple[Path, Any], per_layer: tuple[Path, Any]
) -> None:
    client.push(uniform[0], "me/uniform")
    client.push(per_layer[0], "me/per-layer", base_model="google/bert")
    card = server.repos["me/uniform"].at("main").files["README.md"].decode()
    data = metadata(card)
    assert data["base_model"] == BASE
    assert data["license"] == "apache-2.0"  # from the base model's card on the Hub
    assert data["library_name"] == "transformers"
    assert data["pipeline_tag"] == "text-classification"
    assert data["base_model_relation"] == "finetune" and "datasets" not in data
    assert data["language"] == ["en"]  # as the license
    assert data["metrics"] == ["accuracy", "f1"]
    assert {"pruned", "hf_mabprune"} <= set(data["tags"])
    (entry,) = data["model-index"]
    assert entry["name"] == "uniform"
    values = {metric["type"]: metric["value"] for result in entry["results"] for metric in result["metrics"]}
    assert values == make_report().after.metrics
    assert entry["results"][0]["dataset"]["type"] == "nyu-mll/glue"
    assert "9,216 pulls" in card and "19,500,000 forward tokens" in card
    assert 'checkpoint = "me/uniform"' in card and "trust_remote_code=True" not in card
    assert "(figures/effects.png)" in card

    other = server.repos["me/per-layer"].at("main").files
    card = other["README.md"].decode()
    assert metadata(card)["base_model"] == "google/bert"
    assert metadata(card)["license"] == "mit"  # from the local base model's card
    assert card.count('checkpoint = "me/per-layer"') == 2
    assert "import hf_mabprune" in card and "trust_remote_code=True" in card
    assert json.loads(other["mabprune/report.json"])["model"] == "base"
    shown = yaml.safe_load(other["mabprune/config.yaml"])
    assert shown["task"]["dataset"]["data_files"] == {"test": "test.parquet"}
    assert shown["output"]["dir"] == "run"

    client.push(uniform[0], "me/uniform", license="cc-by-4.0")
    assert metadata(server.repos["me/uniform"].at("main").files["README.md"].decode())["license"] == "cc-by-4.0"


def test_results_of_this_checkpoint_alone_are_published(
    server: HubServer, client: Client, uniform: tuple[Path, Any], per_layer: tuple[Path, Any]
) -> None:
    """Those of the base describe the base; those on data that are not on the Hub are for no benchmark."""
    for _ in range(2):
        client.push(uniform[0], "me/results")
        (entry,) = parse_eval_result_entries(yaml.safe_load(server.repos["me/results"].at("main").files[RESULTS]))
        assert (entry.dataset_id, entry.task_id) == ("nyu-mll/glue", "sst2")
        assert entry.value == make_report().after.metrics["accuracy"]
        assert entry.source_url == "https://huggingface.co/me/results/blob/main/mabprune/report.json"
    client.push(per_layer[0], "me/none")
    assert RESULTS not in server.repos["me/none"].at("main").files


def test_the_card_pins_the_commit_whose_code_it_loads(
    server: HubServer, client: Client, environment: dict[str, str], home: Path, per_layer: tuple[Path, torch.Tensor]
) -> None:
    url = client.push(per_layer[0], "me/pinned")
    _, whole, pin = server.repos["me/pinned"].branches["main"]
    assert url.endswith(whole.oid)
    changed = {name for name in pin.files if pin.files[name] != whole.files[name]}
    assert changed == {"README.md", "mabprune/SHA256SUMS"}
    card = pin.files["README.md"].decode()
    assert f'revision = "{whole.oid}"' in card and "trust_remote_code=True, revision=revision)" in card
    digest = hashlib.sha256(pin.files["README.md"]).hexdigest()
    assert f"{digest}  README.md\n" in pin.files["mabprune/SHA256SUMS"].decode()
    options = {"trust_remote_code": True, "revision": whole.oid}
    ((_, _, logits),) = load_back(environment, home, {"me/pinned": options})
    torch.testing.assert_close(torch.tensor(logits), per_layer[1], rtol=0, atol=1e-6)


def test_pushing_again_updates(server: HubServer, client: Client, tmp_path: Path) -> None:
    repo, folder = "me/again", tmp_path / "model"
    model = tiny_model("llama", "AutoModelForCausalLM")
    model.save_pretrained(folder)  # any model folder, not of a run
    (folder / "README.md").write_text("# mine\n")
    client.push(folder, repo, private=True)
    assert server.repos[repo].private
    assert server.repos[repo].at("main").files["README.md"] == b"# mine\n"
    count = len(server.repos[repo].branches["main"])
    client.push(folder, repo)
    assert len(server.repos[repo].branches["main"]) == count  # nothing new: no empty commit

    (folder / "model.safetensors").unlink()
    with torch.no_grad():
        model.model.norm.weight.mul_(2)
    model.save_pretrained(folder, max_shard_size="40KB")
    server.chunk_size = 9_000
    client.push(folder, repo)
    server.chunk_size = None
    files = server.repos[repo].at("main").files
    shards = {path.name for path in folder.glob("*.safetensors")}
    assert len(shards) > 1 and len(server.parts) > len(shards)
    # from_pretrained would prefer the single file of the first push
    assert {name for name in files if name.endswith(".safetensors")} == shards
    again = server.rebuild(repo, tmp_path / "again")
    (home,) = [shard for shard in again.glob("*.safetensors") if "model.norm.weight" in load_file(shard)]
    assert torch.equal(load_file(home)["model.norm.weight"], model.model.norm.weight)

    client.push(folder, repo, revision="next", message="On a branch")
    client.push(folder, repo, revision="next")
    assert len(server.repos[repo].branches["main"]) == count + 1


def test_the_client_tries_again(server: HubServer, client: Client, uniform: tuple[Path, Any]) -> None:
    with server.failing("preupload", 503, times=1), server.failing("verify", times=1):
        assert "/commit/" in client.push(uniform[0], "me/retried")
    asked = [path for method, path, _ in server.requests if path.startswith("/api/models/me/retried/preupload")]
    assert len(asked) == 2


def test_what_goes_wrong_is_said_in_one_line(server: HubServer, client: Client, uniform: tuple[Path, Any]) -> None:
    folder = uniform[0]

    error, line = client.refused(folder, logged_in=False)
    assert error == "PermissionError" and "hf auth login" in line
    error, line = client.refused(folder, token=WRONG_TOKEN)
    assert error == "PermissionError" and "not valid" in line and "401" in line and "hf auth login" in line
    error, line = client.refused(folder, token=READ_TOKEN)
    assert error == "PermissionError" and "no permission to write to me/new" in line and "write permission" in line
    error, line = client.refused(folder, "someone/new")
    assert error == "PermissionError" and "someone/new" in line
    for malformed in ("hf_\N{SNOWMAN}", f"{TOKEN}\nx"):
        error, line = client.refused(folder, token=malformed)
        assert error == "PermissionError" and "not one word" in line

    with server.failing("POST .*preupload", 404):
        error, line = client.refused(folder)
    assert error == "ValueError" and "me/new is not there" in line and "HF_ENDPOINT" in line
    with server.failing("POST .*commit", 409, message="the branch has moved"):
        error, line = client.refused(folder)
    assert error == "ValueError" and "the branch has moved" in line and "push again" in line
    with server.failing("POST .*commit", 400, message=f"bad header:\nBearer {TOKEN}"):
        error, line = client.refused(folder)
    assert error == "ValueError" and "bad header: Bearer ***" in line
    error, line = client.refused(folder, license="No such license")
    assert error == "ValueError" and '"license" is not valid' in line
    for address in ("repos/create", "validate-yaml", "commit"):
        with server.failing(address, 502):
            error, line = client.refused(folder)
        assert error == "ConnectionError" and "502" in line and "try again later" in line
        with server.failing(address):
            error, line = client.refused(folder)
        assert error == "ConnectionError" and f"cannot reach {server.url}" in line and "HF_ENDPOINT" in line
    with server.failing("PUT /storage", 403):
        server.objects.clear()
        error, line = client.refused(folder)
    assert error == "PermissionError" and "403" in line
    with server.down():
        error, line = client.refused(folder)
    assert error == "ConnectionError" and f"cannot reach {server.url}" in line
    assert "/commit/" in client.push(folder, "me/new")


def truncate(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def lengthen(folder: Path) -> None:
    with (folder / "model.safetensors").open("ab") as file:
        file.write(b"more")


def take_other_weights(folder: Path) -> None:
    save_checkpoint(tiny_model("bert", AUTO), folder / "other", None, torch.float32)
    (folder / "other" / "model.safetensors").replace(folder / "model.safetensors")
    shutil.rmtree(folder / "other")


def rename_a_tensor(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["classifier.wight"] = weights.pop("classifier.weight")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def add_a_tensor(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file({**weights, "classifier.more": torch.zeros(1)}, folder / "model.safetensors", {"format": "pt"})


def replace_code(folder: Path) -> None:
    (folder / "modeling_pruned.py").write_text("raise SystemExit(3)")


def lead_to_other_code(folder: Path) -> None:
    change_json(folder / "config.json", auto_map={"AutoModel": "them/theirs--modeling.Bert"})


def add_code(folder: Path) -> None:
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text("raise SystemExit(3)")


def lead_the_tokenizer_to_code(folder: Path) -> None:
    change_json(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": [None, "them/theirs--tokenize.T"]})


def drop_the_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()


def link_to_a_secret(folder: Path) -> None:
    (folder.parent / "secret").write_text("private")
    (folder / "notes.txt").symlink_to(folder.parent / "secret")


def link_to_a_folder(folder: Path) -> None:
    (folder / "notes").symlink_to(folder.parent)


def link_to_nothing(folder: Path) -> None:
    (folder / "notes.txt").symlink_to("nowhere")


def link_weights_away(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.rename(folder.parent / "weights")
    weights.symlink_to(folder.parent / "weights")


def add_a_pipe(folder: Path) -> None:
    os.mkfifo(folder / "pipe")


def change_json(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


HOSTILE = {
    truncate: "is not whole",
    lengthen: "is not whole",
    take_other_weights: "do not fit config.json: .* must have shape",
    rename_a_tensor: "do not fit config.json: classifier.weight is not there",
    add_a_tensor: "classifier.more is of no use to the model",
    replace_code: "modeling_pruned.py is not the one of this version",
    lead_to_other_code: "auto_map in config.json leads AutoModel to",
    add_code: "generate.py is code that no run writes",
    lead_the_tokenizer_to_code: "tokenizer_config.json names code in auto_map",
    drop_the_tokenizer: "tokenizer",
    link_to_a_secret: "notes.txt is a link to .*secret, not to a file in this folder",
    link_to_a_folder: "notes is a link to",
    link_to_nothing: "notes.txt is a link to nowhere",
    link_weights_away: "model.safetensors is a link to",
    add_a_pipe: "pipe is no plain file",
}


@pytest.mark.parametrize("harm", HOSTILE, ids=lambda harm: harm.__name__)
def test_what_would_not_load_or_is_private_is_not_sent(
    server: HubServer, client: Client, per_layer: tuple[Path, Any], tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(per_layer[0], folder, ignore=shutil.ignore_patterns(".*"))
    harm(folder)
    asked = len(server.requests)
    error, line = client.refused(folder, f"me/{harm.__name__}")
    assert error in ("ValueError", "OutsideError") and re.search(HOSTILE[harm], line), line
    assert f"me/{harm.__name__}" not in server.repos
    assert not any(method != "GET" for method, _, _ in server.requests[asked:]), "nothing was sent"


def test_a_run_of_layout_uniform_brings_no_code(client: Client, uniform: tuple[Path, Any], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(uniform[0], folder, ignore=shutil.ignore_patterns(".*"))
    change_json(folder / "config.json", auto_map={"AutoModel": "them/theirs--modeling.Bert"})
    _, line = client.refused(folder)
    assert "a checkpoint of layout uniform needs no code, and there is auto_map in config.json" in line


def test_a_run_that_has_changed_is_not_sent(client: Client, per_layer: tuple[Path, Any], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(per_layer[0], folder, ignore=shutil.ignore_patterns(".*"))
    checksums.write(folder, folder / "mabprune" / "SHA256SUMS")
    (folder / "README.md").write_text("a card of my own")
    (folder / "LICENSE").write_text("mine")
    assert "/commit/" in client.push(folder, "me/own-words")
    change_json(folder / "tokenizer_config.json", model_max_length=7)
    error, line = client.refused(folder, "me/changed")
    assert error == "ValueError" and "tokenizer_config.json has changed; bring it back, or remove" in line


def test_the_card_is_written_before_the_repository_is_made(
    server: HubServer, client: Client, per_layer: tuple[Path, Any], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(per_layer[0], folder, ignore=shutil.ignore_patterns(".*"))
    change_json(folder / "mabprune" / "report.json", main_metric="unheard of")
    assert "line" in client.ask(folder, "me/no-card")
    assert "me/no-card" not in server.repos


def test_links_inside_the_folder_are_followed(
    server: HubServer, client: Client, per_layer: tuple[Path, Any], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(per_layer[0], folder, ignore=shutil.ignore_patterns(".*"))
    (folder / "again.json").symlink_to("config.json")
    client.push(folder, "me/linked")
    assert server.repos["me/linked"].at("main").files["again.json"] == (folder / "config.json").read_bytes()


@pytest.mark.parametrize("repo_id", ["", "a/b/c", "me/two words", "me/-x", "me/x.git", "me/a--b"])
def test_malformed_name_is_refused(uniform: tuple[Path, Any], repo_id: str) -> None:
    with pytest.raises(ValueError, match=r"^repo_id must be name or owner/name, .*got"):
        hub.push_checkpoint(uniform[0], repo_id, token=TOKEN)
    with pytest.raises(ValueError, match=r"^base_model must be"):
        hub.push_checkpoint(uniform[0], "me/x", base_model="/models/bert", token=TOKEN)


@pytest.mark.parametrize(
    "missing", ["config.json", "model.safetensors", "modeling_pruned.py", "model-00001-of-00002.safetensors"]
)
def test_incomplete_folder_is_refused(tmp_path: Path, missing: str) -> None:
    reference = {"AutoConfig": "modeling_pruned.MabpruneBertConfig", "AutoModel": "them/code--modeling.Bert"}
    (tmp_path / "config.json").write_text(json.dumps({"auto_map": reference}))
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    names = {"modeling_pruned.py", "model.safetensors"}
    if "-of-" in missing:
        names = {"modeling_pruned.py", *index["weight_map"].values()}
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    for name in names:
        (tmp_path / name).touch()
    check_complete(tmp_path)
    (tmp_path / missing).unlink()
    wanted = re.escape("*.safetensors" if missing == "model.safetensors" else missing)
    with pytest.raises(FileNotFoundError, match=f"needs {wanted}, .* has none: give"):
        hub.push_checkpoint(tmp_path, "me/x", token=TOKEN)


def test_broken_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no checkpoint folder at"):
        hub.push_checkpoint(tmp_path / "nowhere", "me/x", token=TOKEN)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json cannot be read: .*; fetch or save the model again"):
        hub.push_checkpoint(tmp_path, "me/x", token=TOKEN)
    (tmp_path / "config.json").write_text("{}")
    for name in ("model.safetensors", "mabprune/report.json", "mabprune/config.yaml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{")
    with pytest.raises(ValueError, match=r"mabprune is not of this version \(.*\): push with"):
        hub.push_checkpoint(tmp_path, "me/x", token=TOKEN)


def test_offline(uniform: tuple[Path, Any]) -> None:
    with pytest.raises(ConnectionError, match="HF_HUB_OFFLINE is set"):
        hub.push_checkpoint(uniform[0], "me/x", token=TOKEN)
