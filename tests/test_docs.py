"""The documentation does what it says: the tutorial runs, links lead somewhere, configs are valid, names are explained."""

import inspect
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

import hf_mabprune
from hf_mabprune.config import TargetConfig, check

ROOT = Path(__file__).parents[1]
TUTORIAL = ROOT / "docs" / "tutorial.md"
PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md"]
NEEDED = ("configs", "scripts", "examples")  # by the tutorial
FENCE = re.compile(r"(?:^<!-- (?P<comment>.*?) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.M | re.S)
LINK = re.compile(r"!?\[[^\]]*\]\((?P<target>[^)\s]+)\)")
END = "--- end of block ---"


@dataclass(frozen=True)
class Block:
    """One code block of a page, and the `text` block after it, which shows what it prints."""

    language: str
    text: str
    line: int
    skipped: str = ""  # why it is not run
    shown: str = ""


def blocks_of(page: Path) -> list[Block]:
    content, found = page.read_text(), list[Block]()
    for fence in FENCE.finditer(content):
        text, language = fence["text"], fence["language"]
        if language == "text" and found:
            found[-1] = Block(**{**vars(found[-1]), "shown": text})
        comment = fence["comment"] or ""
        skipped = comment.removeprefix("not run: ") if comment.startswith("not run: ") else ""
        found.append(Block(language, text, content.count("\n", 0, fence.start("text")), skipped))
    return found


def runnable(language: str) -> list[Block]:
    return [block for block in blocks_of(TUTORIAL) if block.language == language and not block.skipped]


def plain(text: str) -> list[str]:
    """Lines without what differs from run to run and machine to machine: figures, widths of columns, rules."""
    text = re.sub(r"about \d+ (s|min)\b", "about N s", text)
    text = re.sub(r"\d[\d,]*(\.\d+)?(e[+-]?\d+)?", "N", text)
    lines = (" ".join(line.replace("─", " ").split()) for line in text.splitlines())
    return [line for line in lines if line and line != "..."]


def assert_shows(block: Block, printed: str) -> None:
    """Every line that the tutorial shows is printed, figures apart."""
    missing = [line for line in plain(block.shown) if line not in plain(printed)]
    assert not missing, f"tutorial.md:{block.line} shows {missing}, but its block prints\n{printed}"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What of the repository the tutorial needs, in a folder of its own."""
    place = tmp_path_factory.mktemp("tutorial")
    for name in NEEDED:
        shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("__pycache__"))
    return place


@pytest.fixture(scope="module")
def environment(checkout: Path) -> dict[str, str]:
    return {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(checkout / "cache"),
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def run(command: list[str], text: str, checkout: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(command, input=text, cwd=checkout, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{text}\nends with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def after_bash(checkout: Path, environment: dict[str, str]) -> Path:
    """The folder once the bash blocks ran, in order."""
    for block in runnable("bash"):
        assert_shows(block, run(["bash", "-e"], block.text, checkout, environment))
    return checkout


def test_the_commands_of_the_tutorial_do_what_it_shows(after_bash: Path) -> None:
    runs = after_bash / "runs"
    assert sorted(path.name for path in (runs / "tutorial").glob("neurons-*")) == [
        "neurons-0.3-heads-0.3",
        "neurons-0.5-heads-0.5",
    ]
    assert (runs / "tutorial-p20" / "model.safetensors").is_file()
    assert not list(runs.glob("*.state")), "finished runs leave no state behind"


def test_the_files_that_the_tutorial_lists_are_there(after_bash: Path) -> None:
    tree = next(block.text for block in blocks_of(TUTORIAL) if block.text.startswith("runs/tutorial/"))
    names = re.findall(r"\S+\.(?:md|png|yaml|json|safetensors|py|parquet)\b", tree)
    size = after_bash / "runs" / "tutorial" / "neurons-0.5-heads-0.5"
    assert len(names) > 10
    for name in names:
        assert (size / name).is_file() or (size.parent / name).is_file(), name


def test_the_python_of_the_tutorial_does_what_it_shows(after_bash: Path, environment: dict[str, str]) -> None:
    """All blocks in one process, as a reader would go on in one session."""
    blocks = runnable("python")
    script = "".join(f"{block.text}\nprint({END!r}, flush=True)\n" for block in blocks)
    parts = run([sys.executable, "-"], script, after_bash, environment).split(f"{END}\n")
    for block, printed in zip(blocks, parts[:-1], strict=True):
        assert_shows(block, printed)
    assert not (after_bash / "runs" / "api" / "modeling_pruned.py").exists(), "a stock checkpoint"


def test_what_the_tutorial_does_not_run_says_why() -> None:
    commented = [block for block in blocks_of(TUTORIAL) if block.skipped]
    assert {block.language for block in commented} == {"bash", "python"}
    assert any("needs the Hub" in block.skipped for block in commented)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_lead_to_files(page: Path) -> None:
    prose = FENCE.sub("", page.read_text())
    for link in LINK.finditer(prose):
        target = link["target"]
        if not re.match(r"[a-z]+:|#", target):
            assert (page.parent / target.partition("#")[0]).exists(), f"{page.name} links to {target}"


def yaml_blocks() -> Iterator[Any]:
    for page in PAGES:
        for block in blocks_of(page):
            if block.language == "yaml":
                yield pytest.param(block, id=f"{page.name}:{block.line}")


@pytest.mark.parametrize("block", yaml_blocks())
def test_configs_in_the_docs_are_valid(block: Block) -> None:
    """Whole configs and the one part that is shown alone, targets."""
    settings = yaml.safe_load(block.text)
    if "model" in settings:
        check(settings)
    else:
        assert set(settings) == {"target"}
        TargetConfig.model_validate(settings["target"])


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pages that `make docs` builds."""
    pdoc = pytest.importorskip("pdoc")
    place = tmp_path_factory.mktemp("api")
    pdoc.render.configure(docformat="google")
    pdoc.pdoc(*reference_modules(), output_directory=place)
    return place


def reference_modules() -> list[str]:
    """The modules that the Makefile names."""
    makefile = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    listed = re.search(r"^REFERENCE := \$\(addprefix (?P<prefix>\S+), (?P<names>.*)\)$", makefile, re.M)
    assert listed
    return [f"{listed['prefix']}{name}" for name in listed["names"].split()]


@pytest.mark.parametrize("name", hf_mabprune.__all__)
def test_public_names_are_explained_and_in_the_reference(name: str, reference: Path) -> None:
    entry = getattr(hf_mabprune, name)
    text = inspect.getdoc(entry) or ""
    if inspect.isclass(entry) and issubclass(entry, BaseModel):
        unexplained = [field for field, info in entry.model_fields.items() if not info.description]
    else:
        names = inspect.signature(entry).parameters
        section = "Attributes" if inspect.isclass(entry) else "Args"
        assert f"{section}:\n" in text, f"{name} has no {section}"
        unexplained = sorted(set(names) - explained(text, section))
    assert text and not unexplained, f"{name} does not explain {unexplained}"
    page = reference / f"{entry.__module__.replace('.', '/')}.html"
    assert f'id="{name}"' in page.read_text()
    assert (reference / "index.html").is_file()


def explained(text: str, section: str) -> set[str]:
    """Names that a section of a docstring explains; several may share a line."""
    body = text.partition(f"{section}:\n")[2].partition("\n\n")[0]
    heads = re.findall(r"^    (\w[\w, ]*):", body, re.M)
    return {name.strip() for head in heads for name in head.split(",")}


def test_modules_of_the_reference_are_listed_where_they_are_promised() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    for name in hf_mabprune.__all__:
        home = getattr(hf_mabprune, name).__module__
        assert home in reference_modules()
        assert any(f"`{name}`" in line and f"`{home}`" in line for line in index.splitlines()), name
