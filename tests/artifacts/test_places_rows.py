"""Where a checkpoint was tried: rows of a run's report, and its card; those that are added later."""

from pathlib import Path

import pytest

from hf_mabprune.artifacts.run_folder import RunFolder
from hf_mabprune.artifacts.run_writer import add_places
from hf_mabprune.cli.commands import main
from hf_mabprune.evaluation.figures import PlaceFigures
from hf_mabprune.pipeline import prune_from_config
from tests.problems import settings_for, write_splits

pytestmark = [pytest.mark.whole, pytest.mark.usefixtures("without_figures")]
ROW = PlaceFigures("without_package", 'AutoModel.from_pretrained("DIR")', "same", "", 2e-6, "logits", 7.5)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a bert with per-layer sizes."""
    folder = tmp_path_factory.mktemp("run")
    prune_from_config(settings_for(folder, write_splits(folder), "bert"))
    return folder / "out"


def test_a_run_says_where_it_was_tried(run: Path) -> None:
    rows = {row.place: row for row in RunFolder(run).read()[1].places}
    assert [rows[name].outcome for name in ("auto", "bfloat16", "pipeline")] == ["same"] * 3
    assert rows["auto"].difference == 0 and rows["without_package"].outcome == "untried"
    card = RunFolder(run).card.read_text()
    assert '| bfloat16 | `import hf_mabprune; AutoModelForSequenceClassification.from_pretrained("DIR"' in card
    assert str(run) not in card


def test_rows_come_later_too(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add_places(run, [ROW])
    assert ROW in RunFolder(run).read()[1].places
    assert "2e-06 (logits)" in RunFolder(run).card.read_text()
    assert main(["verify", str(run)]) == 0
    RunFolder(run).config.write_text(f"{RunFolder(run).config.read_text()}\n")
    with pytest.raises(ValueError, match=r"config\.yaml .*SHA256SUMS"):
        add_places(run, [ROW])


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no finished run"):
        add_places(tmp_path, [ROW])
