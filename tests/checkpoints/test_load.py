"""What a stored model says is data: sizes, numbers, names of files and code are checked before they are believed."""

import inspect
import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from hf_mabprune.checkpoints import modeling_pruned
from hf_mabprune.checkpoints.load import load_config, load_pruned, load_weights
from hf_mabprune.checkpoints.modeling_file import MODELING_FILE, is_own_modeling_file
from hf_mabprune.checkpoints.processors import load_processor
from hf_mabprune.checkpoints.save import save_checkpoint
from hf_mabprune.surgery.cut import cut
from tests.tasks.tiny_tasks import make_tokenizer
from tests.tiny_models import every_type_and_head, keep_of, tiny_model

CLASSIFIER = "AutoModelForSequenceClassification"
HUGE = 10**9


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stock checkpoint and a per-layer one."""
    folder = tmp_path_factory.mktemp("stored")
    model = tiny_model("bert", CLASSIFIER)
    save_checkpoint(model, folder / "stock", make_tokenizer("pair"), torch.float32)
    small = cut(model, keep_of(model, {0: range(40)}, {1: [0, 2, 3]}), "per_layer")
    save_checkpoint(small, folder / "pruned", make_tokenizer("pair"), torch.float32)
    tiny_model("gpt2", "AutoModelForCausalLM").save_pretrained(folder / "gpt2", max_shard_size="20KB")
    return folder


@pytest.fixture
def copied(stored: Path, tmp_path: Path) -> Callable[..., Path]:
    """Copies a checkpoint, with other fields in its config.json."""

    def copy(name: str, /, **changes: Any) -> Path:
        folder = Path(shutil.copytree(stored / name, tmp_path / name))
        settings = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(settings | changes))
        return folder

    return copy


def refusal(action: Callable[[], Any]) -> str:
    """The one line that an action is refused with."""
    with pytest.raises((ValueError, OSError)) as refused:
        action()
    line = str(refused.value)
    assert "\n" not in line and len(line) < 1000
    return line


def both(folder: Path, auto_class: str = CLASSIFIER) -> Any:
    load_config(str(folder))
    return load_weights(auto_class, str(folder), dtype=torch.float32)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"num_labels": HUGE, "id2label": None}, "num_labels must be at most 100,000, got 1000000000"),
        ({"num_hidden_layers": 10**7}, "num_hidden_layers must be at most 100,000"),
        ({"num_attention_heads": -4}, "num_attention_heads must be an integer > 0, got -4"),
        ({"hidden_size": 0}, "hidden_size must be an integer > 0, got 0"),
        ({"hidden_size": True}, "hidden_size"),
        ({"hidden_size": 32.5}, "hidden_size"),
        ({"layer_norm_eps": float("nan")}, "layer_norm_eps must be finite, got nan"),
        ({"vocab_size": 10**40}, "vocab_size must be below 2**63, got about 1.0e+40"),
        ({"rope": [[[{"a": float("inf")}]]]}, "must be finite, got inf"),
        ({"nested": json.loads("[" * 50 + "]" * 50)}, "nested too deeply"),
        ({"to_dict": 3}, "to_dict is no setting of a model"),
        ({"__dict__": {}}, "__dict__ is no setting of a model"),
        ({"attribute_map": {"hidden_size": "vocab_size"}}, "attribute_map is no setting of a model"),
        ({"architectures": 3}, "architectures must be a list of names, got 3"),
        ({"attn_implementation": "me/kernel"}, "attn_implementation names 'me/kernel', code from elsewhere"),
        ({"_attn_implementation": {"": "me/kernel"}}, "names 'me/kernel', code from elsewhere"),
        ({"id2label": 3}, "config.json cannot be read: "),
        ({"model_type": ["bert"]}, "config.json cannot be read: "),
    ],
)
def test_a_config_that_no_model_has_is_refused_at_once(
    changes: dict[str, Any], says: str, copied: Callable[..., Path]
) -> None:
    line = refusal(lambda: load_config(str(copied("stock", **changes))))
    assert says in line and "config.json cannot be read: " in line


@pytest.mark.parametrize(
    "content", [b"[]", b"3", b"\xff\xfe", b"{", b"[" * 10**5, b"null", b'{"vocab_size": 1' + b"0" * 5000]
)
def test_a_config_that_is_no_config_is_one_line(content: bytes, copied: Callable[..., Path]) -> None:
    folder = copied("stock")
    (folder / "config.json").write_bytes(content)
    assert "config.json cannot be read: " in refusal(lambda: load_config(str(folder)))


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": 2**20},
        {"vocab_size": HUGE},
        {"intermediate_size": HUGE},
        {"max_position_embeddings": HUGE},
        {"num_hidden_layers": 10**5},
        {"num_hidden_layers": 10**5, "intermediate_size": 1},
        {"type_vocab_size": HUGE},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["stock", "pruned"])
def test_no_memory_is_taken_for_what_the_files_do_not_hold(
    name: str, changes: dict[str, Any], copied: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PreTrainedModel, "_load_pretrained_model", lambda *_: pytest.fail("memory was taken"))
    line = refusal(lambda: both(copied(name, **changes)))
    assert "asks for clearly more parameters than its weights hold" in line and "save both together again" in line


@pytest.mark.parametrize(("model_type", "head"), every_type_and_head()[::7])
@pytest.mark.parametrize("form", ["single", "sharded", "half", "bin"])
def test_models_that_are_whole_load(model_type: str, head: str, form: str, tmp_path: Path) -> None:
    model = tiny_model(model_type, head)
    if form == "half":
        model.half()
    model.save_pretrained(tmp_path, max_shard_size="30KB" if form == "sharded" else "5GB")
    if form == "bin":
        weights = tmp_path / "model.safetensors"
        torch.save(load_file(weights), tmp_path / "pytorch_model.bin")
        weights.unlink()
    again = load_weights(head, str(tmp_path), dtype=torch.float32)
    for (name, parameter), other in zip(model.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(parameter.float(), other), name


def test_what_a_base_model_lacks_for_a_head_is_still_said(tmp_path: Path) -> None:
    tiny_model("bert", "AutoModel").save_pretrained(tmp_path)
    assert "lack classifier.bias and 1 more" in refusal(lambda: both(tmp_path))


@pytest.mark.parametrize(
    ("file", "says"),
    [
        ("../../secret.safetensors", "names '../../secret.safetensors', which is no file beside it"),
        ("/etc/passwd", "names '/etc/passwd', which is no file beside it"),
        (3, "names 3, which is no file beside it"),
        ("model-00009-of-00009.safetensors", "names model-00009-of-00009.safetensors, which is not there"),
    ],
)
def test_an_index_names_files_beside_it(file: Any, says: str, copied: Callable[..., Path]) -> None:
    folder = copied("gpt2")
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"][next(iter(content["weight_map"]))] = file
    index.write_text(json.dumps(content))
    line = refusal(lambda: both(folder, "AutoModelForCausalLM"))
    assert says in line and str(index) in line


@pytest.mark.parametrize("content", ["[]", "{", "{}", '{"weight_map": []}', '{"weight_map": {}}'])
def test_an_index_that_is_none_is_one_line(content: str, copied: Callable[..., Path]) -> None:
    index = copied("gpt2") / "model.safetensors.index.json"
    index.write_text(content)
    assert f"{index} cannot be read: " in refusal(lambda: both(index.parent, "AutoModelForCausalLM"))


def header(length: int, text: str = "") -> bytes:
    return length.to_bytes(8, "little") + text.encode()


OUTSIDE_OF_THE_FILE = '{"a":{"dtype":"F32","shape":[9000000000,9],"data_offsets":[0,4]}}'


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 8,
        header(2**63),
        header(10**8, "{"),
        header(2, "[]"),
        header(2, "{}"),
        header(len(OUTSIDE_OF_THE_FILE), OUTSIDE_OF_THE_FILE),
    ],
)
def test_a_file_of_weights_that_is_none_is_one_line(content: bytes, copied: Callable[..., Path]) -> None:
    weights = copied("stock") / "model.safetensors"
    weights.write_bytes(content)
    assert "cannot be loaded" in (line := refusal(lambda: both(weights.parent))) or "lack" in line


def test_a_file_of_torch_may_not_claim_more_than_it_holds(copied: Callable[..., Path]) -> None:
    folder = copied("stock")
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    tensors["classifier.weight"] = torch.zeros(1).expand(10**6, 10**6)
    torch.save(tensors, folder / "pytorch_model.bin")
    assert "its tensors are larger than the file" in refusal(lambda: both(folder))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["stock", "pruned"])
def test_weights_that_are_not_finite_are_refused_by_name(name: str, value: float, copied: Callable[..., Path]) -> None:
    weights = copied(name) / "model.safetensors"
    tensors = load_file(weights)
    tensors["classifier.weight"][1, 3] = value
    save_file(tensors, weights, {"format": "pt"})
    for load in (lambda: both(weights.parent), lambda: load_pruned(weights.parent)):
        assert "are not finite: classifier.weight holds" in refusal(load)


def test_weights_that_are_integers_are_refused_by_name(copied: Callable[..., Path]) -> None:
    weights = copied("stock") / "model.safetensors"
    tensors = load_file(weights)
    tensors["classifier.weight"] = tensors["classifier.weight"].to(torch.int64)
    tensors["bert.embeddings.position_ids"] = torch.arange(64)[None]  # as older versions have saved it
    save_file(tensors, weights, {"format": "pt"})
    assert "not floating-point numbers: classifier.weight is I64" in refusal(lambda: both(weights.parent))


@pytest.mark.parametrize("content", ["{", "[]", "3"])
def test_a_broken_generation_config_is_named(content: str, copied: Callable[..., Path]) -> None:
    side = copied("gpt2") / "generation_config.json"
    side.write_text(content)
    assert f"{side} cannot be read: " in refusal(lambda: both(side.parent, "AutoModelForCausalLM"))


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", ["{", "[]", "3", "", "\0"])
def test_a_broken_file_of_the_tokenizer_is_named(file: str, content: str, copied: Callable[..., Path]) -> None:
    side = copied("stock") / file
    side.write_text(content)
    line = refusal(lambda: load_processor("AutoTokenizer", str(side.parent)))
    assert str(side) in line and "save it beside the model" in line


def test_the_modeling_file_of_a_checkpoint_is_known_by_its_bytes(stored: Path, tmp_path: Path) -> None:
    assert is_own_modeling_file(stored / "pruned" / MODELING_FILE)
    assert is_own_modeling_file(inspect.getfile(modeling_pruned))
    other = tmp_path / MODELING_FILE
    other.write_bytes((stored / "pruned" / MODELING_FILE).read_bytes() + b"\n")
    assert not is_own_modeling_file(other)


@pytest.mark.parametrize("fault", ["file", "auto_map", "repository"])
def test_strange_code_is_noticed_and_refused_where_it_might_run(fault: str, copied: Callable[..., Path]) -> None:
    folder = copied("pruned")
    settings = json.loads((folder / "config.json").read_text())
    trace = folder / "trace"
    code = f"open({str(trace)!r}, 'w').close()\n"
    if fault == "file":
        (folder / MODELING_FILE).write_text(code + (folder / MODELING_FILE).read_text())
    elif fault == "auto_map":
        (folder / "other.py").write_text(code)
        settings["auto_map"][CLASSIFIER] = "other.MabpruneBertForSequenceClassification"
    else:
        settings["auto_map"]["AutoConfig"] = "somebody/else--modeling_pruned.MabpruneBertConfig"
    (folder / "config.json").write_text(json.dumps(settings))

    for load in (load_config, load_pruned):
        with pytest.warns(
            UserWarning, match=r"which is not of hf_mabprune; it was|not the one of this version.*; it was"
        ):
            load(str(folder))
        assert "and might be run: " in refusal(lambda load=load: load(str(folder), trust_remote_code=True))
    assert not trace.exists()


def test_a_checkpoint_as_it_was_written_gives_no_warning(stored: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for name in ("stock", "pruned"):
            load_pruned(stored / name)
            load_config(str(stored / name), trust_remote_code=True)


@pytest.mark.parametrize("name", ["pipeline", "AutoConfig", "BertTokenizer", "NoSuchModel", "MabprunePipeline"])
def test_an_architecture_is_a_model_of_transformers(name: str, copied: Callable[..., Path]) -> None:
    folder = copied("stock", architectures=[name])
    assert f"names the architecture {name!r}, which transformers has not" in refusal(lambda: load_pruned(folder))
