"""ONNX of decoders: any text in one pass or in several, with keys and values by layer, as torch has them."""

import re
from pathlib import Path

import numpy as np
import pytest
from torch.onnx.errors import OnnxExporterError
from transformers import PreTrainedModel

from hf_mabprune.exports.onnx import FILE, Onnx
from hf_mabprune.exports.onnx_graph import Runtime
from hf_mabprune.surgery.cut import cut
from tests.problems import selection
from tests.tasks.tiny_tasks import make_tokenizer
from tests.tiny_models import NOTHING, deep_model, keep_of, tiny_model

PAGE = Path(__file__).parents[2] / "docs" / "places.md"
HEAD = "AutoModelForCausalLM"
NEW = 20  # tokens, more than the sliding windows of tiny models
ROPE = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}


@pytest.fixture(autouse=True)
def _installed() -> None:
    for name in Onnx.modules:
        pytest.importorskip(name, reason=Onnx.remedy)


def with_other_sizes() -> PreTrainedModel:
    """A Llama of three layers: two key-value heads, one, and no attention."""
    model = deep_model("llama", HEAD, 3)
    keep = keep_of(model, {0: range(9), 1: range(20), 2: range(48)}, {0: range(4), 1: (2, 3), 2: NOTHING})
    return cut(model, keep, "per_layer").eval()


def with_windows() -> PreTrainedModel:
    model = tiny_model("gemma3_text", HEAD)
    return cut(model, selection(model, "per_layer"), "per_layer").eval()


def recipe(folder: Path) -> str:
    """The loop of the page, with another folder, other texts and another number of tokens."""
    (code,) = (
        each for each in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S) if "InferenceSession" in each
    )
    assert '"OUT' in code and "range(16)" in code
    code = re.sub(r"TEXTS = \[.*\]", "TEXTS = ['a b c d e f g', 'd a j']", code)
    return code.replace('"OUT', f'"{folder}').replace("range(16)", f"range({NEW})")


@pytest.mark.whole
@pytest.mark.parametrize(("make", "heads"), [(with_other_sizes, {"0": 2, "1": 1}), (with_windows, {"0": 1, "1": 1})])
def test_the_loop_of_the_page_gives_what_generate_gives(make, heads, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    model, tokenizer = make(), make_tokenizer("plain", padding_side="left")
    Onnx().check(model)
    Onnx().write(model, tokenizer, tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert Onnx().difference(model, tmp_path) <= Onnx.tolerance
    states = {name: shape for name, shape in Runtime(tmp_path / FILE)._states.items() if name.endswith("key")}
    assert {name.split(".")[1]: shape[1] for name, shape in states.items()} == heads

    found: dict[str, np.ndarray] = {}
    exec(recipe(tmp_path), found)
    text = tokenizer(["a b c d e f g", "d a j"], return_tensors="pt", padding=True)
    assert text["attention_mask"][1, 0] == 0
    options = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    expected = model.generate(text["input_ids"], attention_mask=text["attention_mask"], **options)[:, -NEW:]
    assert np.concatenate(found["new"], 1).tolist() == expected.tolist()


@pytest.mark.whole
def test_experts_are_written(tmp_path: Path) -> None:
    model = tiny_model("mixtral", HEAD)
    model = cut(model, selection(model, "per_layer"), "per_layer").eval()
    before = model.config._experts_implementation
    Onnx().write(model, make_tokenizer("plain"), tmp_path)
    assert model.config._experts_implementation == before
    assert Onnx().difference(model, tmp_path) <= Onnx.tolerance


@pytest.mark.parametrize(
    ("model_type", "changes", "says"),
    [
        ("lfm2", {}, "whose layer 0 keeps other states, in a LinearAttentionLayer"),
        ("qwen3_5_text", {}, "whose layer 0 keeps other states, in a LinearAttentionLayer"),
        ("llama", {"rope_parameters": ROPE}, "got LlamaForCausalLM, whose rotary frequencies change with the length"),
    ],
)
def test_decoders_that_one_graph_cannot_hold_are_refused(
    model_type: str, changes: dict[str, object], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        Onnx().check(tiny_model(model_type, HEAD, **changes))


def test_what_the_exporter_does_not_write_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise OnnxExporterError("a page of advice") from TypeError("no complex numbers\nsee above")

    monkeypatch.setattr("torch.onnx.export", stop)
    with pytest.raises(ValueError, match=r"does not write LlamaForCausalLM: no complex numbers$"):
        Onnx().write(tiny_model("llama", HEAD), make_tokenizer("plain"), tmp_path)
