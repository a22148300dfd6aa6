"""A run is over when it is published: it keeps its lock until then, and a push that failed is what is left to do."""

from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock, Timeout

from hf_mabprune.artifacts.run_folder import RunFolder
from hf_mabprune.cli.commands import main
from tests.problems import settings_for, write_splits

pytestmark = [pytest.mark.whole, pytest.mark.usefixtures("without_figures")]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A small run that shall be pushed."""
    monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 20)
    changes = {"search": {"criterion": "magnitude", "rounds": None}, "compensation": None}
    settings = settings_for(tmp_path, write_splits(tmp_path), "bert", output={"push_to_hub": "me/small"}, **changes)
    (tmp_path / "run.yaml").write_text(settings.to_yaml())
    return ["prune", "--config", str(tmp_path / "run.yaml"), "--output.dir", str(tmp_path / "out")]


def pushing(monkeypatch: pytest.MonkeyPatch, push: Callable[[RunFolder, str], None]) -> None:
    monkeypatch.setattr("hf_mabprune.pipeline.push_run", push)


def test_a_push_that_failed_is_all_that_is_left_to_do(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(folder: RunFolder, repo_id: str) -> None:
        raise ConnectionError("the Hub cannot be reached")

    pushed: list[tuple[Path, str]] = []
    pushing(monkeypatch, fails)
    out = tmp_path / "out"
    assert main(command) == 2
    line = capsys.readouterr().err
    assert "the Hub cannot be reached. The output is safe in" in line and "--resume" in line
    weights = (out / "model.safetensors").read_bytes()

    assert main(command) == 2, "a second run replaces nothing"
    assert "exists" in capsys.readouterr().err
    assert main([*command, "--resume"]) == 2
    assert "The output is safe in" in capsys.readouterr().err

    pushing(monkeypatch, lambda folder, repo_id: pushed.append((folder.root, repo_id)))
    monkeypatch.setattr("hf_mabprune.pipeline.open_session", lambda *_: pytest.fail("nothing is computed again"))
    assert main([*command, "--resume"]) == 0
    assert pushed == [(out, "me/small")] and (out / "model.safetensors").read_bytes() == weights
    assert "pushed: " in capsys.readouterr().out
    assert not Path(f"{out}.state").exists()
    assert main([*command, "--resume"]) == 0 and "finished already" in capsys.readouterr().out


def test_the_lock_is_held_while_the_output_goes_out(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def is_locked(folder: RunFolder, repo_id: str) -> None:
        with pytest.raises(Timeout):
            FileLock(folder.under_way.lock, timeout=0, is_singleton=False).acquire()

    pushing(monkeypatch, is_locked)
    assert main(command) == 0


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "mabprune/report.json"])
@pytest.mark.parametrize("harm", ["gone", "changed"])
def test_an_output_that_is_not_whole_is_not_finished(
    name: str, harm: str, command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    pushing(monkeypatch, lambda folder, repo_id: None)
    assert main(command) == 0
    path = tmp_path / "out" / name
    if harm == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes() + b" ")
    capsys.readouterr()
    assert main([*command, "--resume"]) == 2
    said = {"gone": f"it lacks {name}", "changed": f"its {name} was changed"}
    assert said[harm] in capsys.readouterr().err
