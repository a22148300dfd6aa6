"""Credentials in addresses, and the token of the Hub, are in nothing that a run prints, keeps or publishes."""

import os
from pathlib import Path

import pytest
import yaml

from hf_mabprune.cli.commands import main
from hf_mabprune.config import check
from tests.problems import settings_for, write_splits

pytestmark = [pytest.mark.whole, pytest.mark.usefixtures("without_figures")]
SECRET = "s3cretPW"
TOKEN = "hf_" + "aB3" * 11


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The settings of a run whose data lie at addresses with secrets: files named so, for there is no network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HTTPS_PROXY", f"http://me:{SECRET}@localhost:9")
    files = {}
    for split, path in write_splits(tmp_path).items():
        files[split] = f"{Path(path).name}?token={SECRET}"
        os.rename(path, files[split])
    settings = settings_for(tmp_path, files, "bert", output={"dir": "out", "log_with": ["tensorboard"]})
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings.model_dump()))
    return tmp_path / "run.yaml"


def leaks(folder: Path, but: Path) -> list[str]:
    """Names the files that hold a secret, in their names too."""
    secrets = (SECRET.encode(), TOKEN.encode())
    files = [path for path in folder.rglob("*") if path.is_file() and path != but and "parquet?" not in path.name]
    return [str(path) for path in files if any(secret in path.read_bytes() for secret in secrets)]


def test_a_run_prints_and_keeps_no_secret(run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["prune", "--config", str(run)]) == 0
    assert main(["prune", "--config", str(run), "--resume"]) == 0, "the settings are the same, with the secrets"
    printed = "".join(capfd.readouterr())
    assert "finished already" in printed
    assert SECRET not in printed and TOKEN not in printed
    assert leaks(tmp_path, but=run) == []

    written = tmp_path / "out" / "mabprune" / "config.yaml"
    assert "?token=***" in written.read_text()
    assert main(["prune", "--config", str(written), "--output.dir", "again"]) == 2
    assert "lost its credentials when it was saved; give the config that the run was" in capfd.readouterr().err
    assert main(["cut", "out", "--target.neurons", "0.25", "--output.dir", "smaller"]) == 2
    assert "lost its credentials" in capfd.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--task.dataset.data_files", f"{{train: 'https://me:{SECRET}@localhost:9/a.parquet?token={SECRET}'}}"],
        ["--task.dataset.data_files", f"{{train: 'me:{SECRET}@host/a.parquet'}}"],
        ["--task.dataset.path", f"https://me:{SECRET}@localhost:9/a"],
        ["--model.name", f"https://me:{SECRET}@localhost:9/a"],
        ["--model.name", f"me:{SECRET}@host/a"],
        ["--seed", f"https://me:{SECRET}@localhost:9/a"],
        [f"--sede=https://me:{SECRET}@localhost:9/a"],
        [f"https://me:{SECRET}@localhost:9/a"],
        ["--config", f"https://me:{SECRET}@localhost:9/a"],
        ["--search.policy", f"{{name: 'https://me:{SECRET}@localhost:9/a'}}"],
        ["--search.policy.token", f"https://me:{SECRET}@localhost:9/a"],
        ["--plugin", f"https://me:{SECRET}@localhost:9/a.py"],
        ["--task.metrics", f"['https://me:{SECRET}@localhost:9/a']"],
        ["--task.splits.test", f"https://me:{SECRET}@localhost:9/a"],
        ["--output.push_to_hub", f"https://me:{SECRET}@localhost:9/a"],
        ["--model.name", TOKEN],
    ],
    ids=lambda arguments: arguments[0],
)
def test_no_refusal_shows_a_secret(run: Path, arguments: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--config", str(run), *arguments]) == 2
    printed = "".join(capfd.readouterr())
    assert SECRET not in printed and TOKEN not in printed
    assert printed.startswith("mabprune: ") and printed.count("\n") == 1, printed


def test_what_is_written_down_can_be_compared_with_what_was_given(run: Path) -> None:
    settings = check(yaml.safe_load(run.read_text()))
    again = check(yaml.safe_load(settings.to_yaml()))
    assert again.stored() == settings.stored() != settings.model_dump()
