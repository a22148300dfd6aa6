"""What is shipped: the wheel, installed alone, prunes the quickstart far from the repository."""

import configparser
import importlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.whole
ROOT = Path(__file__).parents[1]
PACKAGE = "hf_mabprune"
LOOK = """
import json, sys, hf_mabprune
model = hf_mabprune.load_pruned(sys.argv[1])
print(json.dumps({"file": hf_mabprune.__file__, "parameters": model.num_parameters()}))
"""


def not_sources(folder: str, names: list[str]) -> set[str]:
    """What a build needs no copy of: leftovers, hidden files, large files and virtual environments of any name."""
    left = shutil.ignore_patterns(".*", "*.egg-info", "runs", "build", "docs", "examples", "__pycache__")
    environments = {name for name in names if Path(folder, name, "pyvenv.cfg").exists()}
    return left(folder, names) | environments


def run(*command: str | Path, cwd: Path, path: Path | None = None) -> str:
    """Runs a command; what it prints."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"PYTHONPATH": str(path)} if path else {}
    environment |= {"OMP_NUM_THREADS": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, for a build leaves folders beside pyproject.toml; with what is installed, from no network."""
    place = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT, place / "sources", ignore=not_sources)
    pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index")
    run(*pip, "--wheel-dir", place, place / "sources", cwd=place)
    return next(place.glob("*.whl"))


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    sources = (path for path in (ROOT / PACKAGE).rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    assert names == {path.relative_to(ROOT).as_posix() for path in sources}
    needed = ("py.typed", "artifacts/card_template.md", "checkpoints/modeling_pruned.py")
    assert {f"{PACKAGE}/{name}" for name in needed} <= names


def test_the_entry_points_of_the_wheel_are_functions(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        file = next(name for name in archive.namelist() if name.endswith(".dist-info/entry_points.txt"))
        text = archive.read(file).decode()
    groups = configparser.ConfigParser()
    groups.read_string(text)
    assert groups.sections() == ["console_scripts", "vllm.general_plugins"]
    for group in groups.sections():
        for value in groups[group].values():
            module, _, function = value.partition(":")
            assert callable(getattr(importlib.import_module(module), function))


def test_the_wheel_carries_its_licence(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        licence = next(name for name in archive.namelist() if name.endswith(".dist-info/licenses/LICENSE"))
        assert archive.read(licence) == (ROOT / "LICENSE").read_bytes()


def test_the_sample_text_travels_with_its_own_licence(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        metadata = archive.read(next(name for name in archive.namelist() if name.endswith("/METADATA"))).decode()
        beside = archive.read(f"{PACKAGE}/data/text/LICENSE.md").decode()
    assert "License-Expression: Apache-2.0 AND CC-BY-SA-3.0" in metadata
    assert f"License-File: {PACKAGE}/data/text/LICENSE.md" in metadata
    assert "CC-BY-SA-3.0" in beside and "https://en.wikipedia.org/wiki/" in beside


def test_the_wheel_alone_prunes_the_quickstart(wheel: Path, tmp_path: Path) -> None:
    """The command that an installation brings, in a folder of its own; what it leaves loads there."""
    site, elsewhere, example = tmp_path / "site", tmp_path / "elsewhere", ROOT / "examples/quickstart"
    elsewhere.mkdir()
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-compile")
    run(*pip, "--target", site, wheel, cwd=elsewhere)
    data = [
        word
        for split in ("train", "validation", "test")
        for word in (f"--task.dataset.data_files.{split}", example / f"data/{split}.parquet")
    ]
    budget = ("--task.calibration_examples", "64", "--task.evaluation_examples", "64", "--search.rule.moves", "2")
    settings = ("--config", ROOT / "configs/quickstart.yaml", "--model.name", example / "model", *data, *budget)
    output = ("--output.dir", "out", "--output.random_seeds", "1")
    said = run(site / "bin/mabprune", "prune", *settings, *output, cwd=elsewhere, path=site)
    found = json.loads(run(sys.executable, "-c", LOOK, "out", cwd=elsewhere, path=site))
    report = json.loads((elsewhere / "out/mabprune/report.json").read_text())
    assert "out" in said
    assert Path(found["file"]) == site / PACKAGE / "__init__.py"
    assert found["parameters"] == report["after"]["parameters"] < report["before"]["parameters"]
