"""ONNX: any number of examples of any length in onnxruntime, of encoders, as the torch model gives them."""

from pathlib import Path

import numpy as np
import pytest
import torch

from hf_mabprune.checkpoints.save import save_checkpoint
from hf_mabprune.cli.commands import main
from hf_mabprune.exports.onnx import FILE, Onnx
from hf_mabprune.surgery.cut import cut
from tests.problems import selection
from tests.seeds import moved
from tests.tasks.tiny_tasks import make_tokenizer
from tests.tiny_models import tiny_model


@pytest.mark.whole
@pytest.mark.parametrize(
    ("model_type", "head", "output"),
    [
        ("bert", "AutoModelForSequenceClassification", "logits"),
        ("electra", "AutoModelForQuestionAnswering", "start_logits"),
    ],
)
def test_batches_of_other_sizes_and_lengths_run(model_type: str, head: str, output: str, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime", reason="pip install 'hf_mabprune[onnx]'")
    pytest.importorskip("onnxscript", reason="pip install 'hf_mabprune[onnx]'")
    dense = tiny_model(model_type, head)
    model = cut(dense, selection(dense, "per_layer"), "per_layer").eval()
    save_checkpoint(model, tmp_path / "model", make_tokenizer("pair"), torch.float32)
    assert main(["export", str(tmp_path / "model"), "--to", "onnx", "--output.dir", str(tmp_path / "out")]) == 0

    session = runtime.InferenceSession(str(tmp_path / "out" / FILE), providers=["CPUExecutionProvider"])
    assert [each.name for each in session.get_inputs()] == ["input_ids", "token_type_ids", "attention_mask"]
    generator = torch.Generator().manual_seed(moved(0))
    for examples, tokens in ((1, 3), (5, 23)):
        ids = torch.randint(3, 16, (examples, tokens), generator=generator)
        mask = torch.ones_like(ids)
        mask[0, tokens // 2 + 1 :] = 0
        inputs = {"input_ids": ids, "token_type_ids": torch.zeros_like(ids), "attention_mask": mask}
        with torch.no_grad():
            expected = model(**inputs)[output].numpy()
        found = session.run([output], {name: tensor.numpy() for name, tensor in inputs.items()})[0]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("model_type", "head", "says"),
    [
        ("gpt2", "AutoModelForSequenceClassification", "decoders that continue a text, got GPT2ForSequenceClassific"),
        ("bart", "AutoModelForCausalLM", "for decoders that continue a text, got BartForCausalLM"),
        ("t5", "AutoModelForSeq2SeqLM", "got T5ForConditionalGeneration"),
        ("vit", "AutoModelForImageClassification", "is for models that read token ids, got ViTForImageClassification"),
    ],
)
def test_other_models_are_refused(model_type: str, head: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Onnx().check(tiny_model(model_type, head))
