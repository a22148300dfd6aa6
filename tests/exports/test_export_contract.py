"""What every registered export must do, on a tiny pruned classifier of both layouts."""

from pathlib import Path

import pytest
import torch

from hf_mabprune.checkpoints.load import load_pruned
from hf_mabprune.checkpoints.save import save_checkpoint
from hf_mabprune.cli.commands import main
from hf_mabprune.exports import EXPORTS
from hf_mabprune.surgery.cut import Layout, cut
from tests.problems import selection
from tests.tasks.tiny_tasks import make_tokenizer
from tests.tiny_models import tiny_model

pytestmark = pytest.mark.whole
HEAD = "AutoModelForSequenceClassification"


def installed(name: str) -> None:
    """Skips a test where the packages that an export needs are not there."""
    for module in EXPORTS.get(name).modules:
        pytest.importorskip(module, reason=f"export {name} needs {module}: {EXPORTS.get(name).remedy}")


def checkpoint(folder: Path, layout: Layout = "per_layer") -> Path:
    """A pruned classifier with its tokenizer."""
    model = tiny_model("bert", HEAD)
    save_checkpoint(cut(model, selection(model, layout), layout), folder, make_tokenizer("pair"), torch.float32)
    return folder


@pytest.mark.parametrize("layout", ["uniform", "per_layer"])
@pytest.mark.parametrize("name", EXPORTS.names())
def test_what_is_exported_gives_what_the_model_gives(
    name: str, layout: Layout, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    installed(name)
    source, place = checkpoint(tmp_path / "model", layout), tmp_path / f"model-{name}"
    assert main(["export", str(source), "--to", name]) == 0
    assert f"exported: {place}, outputs within " in capsys.readouterr().out
    export = EXPORTS.get(name)()
    assert export.difference(load_pruned(source, dtype=torch.float32).eval(), place) <= export.tolerance
    assert (place / "config.json").is_file() and (place / "tokenizer.json").is_file()

    before = sorted(place.iterdir())
    assert main(["export", str(source), "--to", name]) == 2
    assert "choose another output.dir" in capsys.readouterr().err.lower() and sorted(place.iterdir()) == before


@pytest.mark.parametrize("name", EXPORTS.names())
def test_what_gives_something_else_is_not_kept(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    installed(name)
    monkeypatch.setattr(EXPORTS.get(name), "difference", lambda *_: float("nan"))
    assert main(["export", str(checkpoint(tmp_path / "model")), "--to", name]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("mabprune:")]
    assert (
        f"export {name} of {tmp_path}/model does not give what the model gives" in line and "nothing was kept" in line
    )
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("name", EXPORTS.names())
def test_what_is_not_installed_is_said_before_anything_is_read(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(EXPORTS.get(name), "modules", ("no_such_module",))
    monkeypatch.setattr(EXPORTS.get(name), "remedy", "pip install such-a-thing")
    assert main(["export", str(tmp_path / "nothing"), "--to", name]) == 2
    line = f"mabprune: export {name} needs no_such_module, not installed here: pip install such-a-thing"
    assert capsys.readouterr().err.splitlines() == [line]
