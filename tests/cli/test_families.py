"""`mabprune families`: all types, one with its reasons, JSON, and refusals of what is none."""

import json

import pytest

from hf_mabprune.architectures import ARCHITECTURES
from hf_mabprune.architectures.shown import Results
from hf_mabprune.cli.commands import main


def said(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    assert main(["families", *arguments]) == code
    output = capsys.readouterr()
    return output.err if code else output.out


def test_all_types_have_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys)
    lines = {line.split()[0]: line for line in text.splitlines() if line.strip()}
    assert lines.keys() >= {*ARCHITECTURES.names()}
    assert lines["olmo2"].split()[:4] == ["olmo2", "both", "stay", "both"]
    assert lines["llama"].split()[:4] == ["llama", "both", "both", "both"]
    assert "divisors of the hidden size" in lines["llama"]
    assert lines["bert"].split()[:4] == ["bert", "both", "per_layer", "both"]
    assert "shown with transformers" in text


def test_one_type_has_all_its_reasons(capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, "bert")
    assert text.startswith("bert: AutoModel, ")
    assert "neurons, uniform: shown, equivalence, " in text
    assert "heads, uniform: cannot be had\n  a stock bert config cannot say 2 heads: it makes encoder.layer.0." in text
    assert "q_norm and k_norm run over all heads together" in said(capsys, "olmo3")
    assert "experts, uniform: shown" in said(capsys, "mixtral")


def test_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    of_one, of_all = (json.loads(said(capsys, *given, "--json")) for given in (["gpt2"], []))
    assert of_one["rows"] == [row for row in of_all["rows"] if row["model_type"] == "gpt2"]
    assert [(row["kind"], row["layout"]) for row in of_one["rows"]] == [
        (kind, layout) for kind in ("neuron", "head", "layer") for layout in ("per_layer", "uniform")
    ]
    assert {row["model_type"] for row in of_all["rows"]} == {*ARCHITECTURES.names()}
    assert of_one["shown_with"].keys() == of_one["installed"].keys() == {"transformers", "torch"}


def test_another_type_is_refused_as_a_run_would_refuse_it(capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, "bloom", code=2)
    assert text.startswith("mabprune: model type 'bloom' is not supported yet. Adding it is one file")
    assert text.count("\n") == 1


def test_other_versions_than_those_of_the_results_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("hf_mabprune.cli.commands.read_results", lambda: Results(versions={"torch": "1.0"}))
    text = said(capsys, "llama")
    assert "shown with torch 1.0; installed: torch " in text
    assert text.startswith("llama: not tested\nneurons, per_layer: not tested\n")
