import ast
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from hf_mabprune.artifacts.run_folder import ARMS_COLUMNS, RunFolder
from tests.artifacts.reports import make_report

ROOT = Path(__file__).parents[2]
ALONE = "hf_mabprune/artifacts/run_folder.py"
NAME = re.compile(
    r"(?:^|/)(?:report\.json|arms\.parquet|examples\.parquet|config\.yaml|README\.md)$|search_state|\.state\b|\.logs\b"
)
FOLDERS = {"mabprune", "figures"}  # words that are also used for something else
SPELLED = re.compile(rf"{NAME.pattern}|(?:^|[/*])(?:{'|'.join(FOLDERS)})/")


def spelled_paths(source: str) -> Iterator[tuple[int, str]]:
    """Line and text of every piece of a path in a source; texts with blanks in them are messages or docstrings."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and not re.search(r"\s", node.value):
            if SPELLED.search(node.value):
                yield node.lineno, node.value
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
            for side in (node.left, node.right):
                if isinstance(side, ast.Constant) and side.value in FOLDERS:
                    yield side.lineno, str(side.value)


def write_run(folder: RunFolder, seed: int = 0) -> None:
    folder.details.mkdir(parents=True)
    folder.report.write_text(replace(make_report(), seed=seed).to_json())
    pd.DataFrame({name: [seed] for name in ARMS_COLUMNS}).to_parquet(folder.arms)


def test_only_the_run_folder_spells_paths_of_a_run() -> None:
    files = [file for part in ("hf_mabprune", "research", "scripts") for file in (ROOT / part).rglob("*.py")]
    assert len(files) > 50
    found = {
        f"{name}:{line}: {text}"
        for file in files
        if (name := file.relative_to(ROOT).as_posix()) != ALONE
        for line, text in spelled_paths(file.read_text())
    }
    assert found == set(), "ask RunFolder for the path, or be handed it"
    assert len({text for _, text in spelled_paths((ROOT / ALONE).read_text())}) == 10


@pytest.mark.parametrize(
    "line",
    [
        'place / "mabprune" / name', '"figures" / name', 'f"{folder}/mabprune/x"', 'f"{folder}.state"', 'x + ".logs"',
        'open("arms.parquet")', '["mabprune/search_state*"]', 'f"{details}/config.yaml"', 'Path("a/report.json")',
    ],
)  # fmt: skip
def test_a_spelled_path_is_seen(line: str) -> None:
    assert list(spelled_paths(line))


@pytest.mark.parametrize("line", ['"""The text of report.json."""', 'plan["mabprune"]', '"no report.json in it"'])
def test_words_are_no_paths(line: str) -> None:
    assert not list(spelled_paths(line))


@pytest.mark.parametrize("root", ["runs/x", "runs/x/", Path("runs/x")])
def test_paths(root: str | Path) -> None:
    folder = RunFolder(root)
    assert folder.size("macs-0.5").report == Path("runs/x/macs-0.5/mabprune/report.json")
    assert folder.search_state == Path("runs/x/mabprune/search_state.safetensors")
    assert (folder.card, folder.figures) == (Path("runs/x/README.md"), Path("runs/x/figures"))
    assert folder.page == Path("runs/x.html"), "where no push takes it along"
    assert folder.logs == Path("runs/x.logs"), "beside the output, which is replaced as a whole"
    paths = folder.under_way
    assert (paths.output, paths.written, paths.logs) == (Path("runs/x"), folder.config, folder.logs)
    assert (paths.state, paths.lock) == (Path("runs/x.state"), Path("runs/x.state/lock"))
    assert paths.config == Path("runs/x.state/config.yaml")
    assert paths.search == Path("runs/x.state/search_state.safetensors")
    assert set(paths.names()) == {
        "lock", "config.yaml", "config.yaml.partial", "search_state.safetensors", "search_state.safetensors.partial",
        "unpublished", ".mabprune-output.json",
    }  # fmt: skip


def test_a_run_is_read_back(tmp_path: Path) -> None:
    write_run(RunFolder(tmp_path), seed=3)
    arms, report = RunFolder(tmp_path).read()
    assert set(arms.columns) == ARMS_COLUMNS and arms["start"].tolist() == [3]
    assert report == replace(make_report(), seed=3)
    assert RunFolder(tmp_path).sizes() == []


def test_of_several_sizes_the_first_is_read(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for seed, name in enumerate(["macs-0.25", "macs-0.5"]):
        write_run(folder.size(name), seed)
    folder.figures.mkdir()
    assert [size.root.name for size in folder.sizes()] == ["macs-0.25", "macs-0.5"]
    assert folder.read()[1].seed == 0


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with pytest.raises(ValueError, match=r"holds no finished run: no mabprune/arms\.parquet and report\.json in it"):
        folder.read()
    write_run(folder)
    pd.DataFrame({name: [0] for name in ARMS_COLUMNS - {"order"}}).to_parquet(folder.arms)
    with pytest.raises(ValueError, match=r"arms\.parquet is not of this version of hf_mabprune: no column order"):
        folder.read()
    pd.DataFrame({name: [0] for name in ARMS_COLUMNS - {"site"}}).to_parquet(folder.arms)
    with pytest.raises(ValueError, match=r"arms\.parquet is not of this version of hf_mabprune: no column site"):
        folder.read()
    folder.report.unlink()
    with pytest.raises(ValueError, match="holds no finished run"):
        folder.read()
