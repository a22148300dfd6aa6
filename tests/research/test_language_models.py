"""The script that sets language models beside their dense one: its figures are those of plain transformers."""

import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn.functional import kl_div

from tests.research.conftest import ROOT
from tests.tasks.tiny_tasks import make_tokenizer
from tests.tiny_models import tiny_model

LENGTH = 16


def test_perplexity_divergence_and_answers_are_those_of_plain_transformers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer, dense = make_tokenizer("plain"), tiny_model("llama", "AutoModelForCausalLM")
    other = tiny_model("llama", "AutoModelForCausalLM")
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.5)
    for name, model in (("dense", dense), ("other", other)):
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    words = np.random.default_rng(0).choice(list("abcdefghij"), 8 * LENGTH)
    pd.DataFrame({"text": [" ".join(words)]}).to_parquet(tmp_path / "story.parquet")
    questions = {
        "ctx": ["a b", "c d", "e f"],
        "endings": [["a", "b"], ["c", "d"], ["g h", "i"]],
        "label": ["0", "1", "0"],
    }
    pd.DataFrame(questions).to_parquet(tmp_path / "quiz.parquet")

    files = ["--texts", f"story={tmp_path / 'story.parquet'}", "--choices", f"quiz={tmp_path / 'quiz.parquet'}"]
    places = [str(tmp_path / name) for name in ("dense", "other", "dense")]
    options = ["--length", str(LENGTH), "--dtype", "float32"]
    monkeypatch.setattr(sys, "argv", ["language_models.py", *places, *files, *options])
    assert run() == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert last == "3 models compared"

    monkeypatch.setattr(sys, "argv", ["language_models.py", *places, str(tmp_path / "none"), *files, *options])
    assert run() == 2
    said = capsys.readouterr()
    assert not said.out and len(said.err.splitlines()) == 1 and str(tmp_path / "none") in said.err

    ids = torch.tensor(tokenizer(" ".join(words))["input_ids"]).view(-1, LENGTH)
    with torch.no_grad():
        losses = [float(model(ids, labels=ids).loss) for model in (dense, other)]
        said, said_dense = (model(ids).logits[:, :-1].log_softmax(-1).flatten(0, 1) for model in (other, dense))
    found = re.search(r"other, story: perplexity ([\d.]+) \(([-+\d.]+)%.*KL ([\d.]+)", "\n".join(lines))
    assert found
    perplexity, more, divergence = map(float, found.groups())
    assert perplexity == pytest.approx(np.exp(losses[1]), abs=0.006)
    assert more == pytest.approx(100 * np.expm1(losses[1] - losses[0]), abs=0.06)
    expected = float(kl_div(said, said_dense, log_target=True, reduction="batchmean"))
    assert divergence == pytest.approx(expected, abs=6e-5) and expected > 1e-3
    itself = [line.split(": ", 1)[1] for line in lines[-3:]]
    assert "(+0.0%, +0.0% to +0.0%), KL 0.0000" in itself[1]
    assert "of 3 right (+0.0 points" in itself[2]


def run() -> int:
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "scripts" / "language_models.py"), run_name="__main__")
    return int(str(ended.value.code))
