"""The documentation does what it says: the tutorial runs, links lead to files, configs and names are explained."""

import importlib
import inspect
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

import hf_mabprune
from hf_mabprune.cli.settings import read_settings
from hf_mabprune.config import TargetConfig, check

ROOT = Path(__file__).parents[1]
TUTORIAL = ROOT / "docs" / "tutorial.md"
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/*/*.md")])
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
    """Lines without what differs from run to run and machine to machine: figures, widths of columns, rules, and that
    a race was over before its budget."""
    text = re.sub(r"about \d+ (s|min)\b", "about N s", text)
    text = re.sub(r"[+-]?\d[\d,]*(\.\d+)?(e[+-]?\d+)?", "N", text)
    text = re.sub(r", N of N rounds decided before their budget was spent", "", text)
    lines = (" ".join(line.replace("─", " ").split()) for line in text.splitlines())
    return [line for line in lines if line and line != "..."]


def assert_shows(block: Block, printed: str) -> None:
    """Every line that the tutorial shows is printed, figures apart; `...` at the end of one leaves the rest open."""
    lines = plain(printed)
    starts = [line.removesuffix("...") if line.endswith(" ...") else f"{line}\n" for line in plain(block.shown)]
    missing = [start for start in starts if not any(f"{line}\n".startswith(start) for line in lines)]
    assert not missing, f"tutorial.md:{block.line} shows {missing}, but its block prints\n{printed}"


def checkout(place: Path) -> dict[str, str]:
    """Copies what the tutorial needs of the repository, and returns the environment that its commands run in."""
    for name in NEEDED:
        shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("__pycache__"))
    return {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(place / "cache"),
        "TOKENIZERS_PARALLELISM": "false",
    }


def run(command: list[str], text: str, place: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(command, input=text, cwd=place, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{text}\nends with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.whole
def test_the_tutorial_does_what_it_shows(tmp_path: Path) -> None:
    """One test, for it is one path: the commands in order, then all Python in one process, as in one session."""
    environment = checkout(tmp_path)
    for block in runnable("bash"):
        assert_shows(block, run(["bash", "-e"], block.text, tmp_path, environment))
    runs = tmp_path / "runs"
    for name in listed_files():
        size = runs / "tutorial" / "neurons-0.5-heads-0.5"
        assert (size / name).is_file() or (size.parent / name).is_file(), name

    blocks = runnable("python")
    script = "".join(f"{block.text}\nprint({END!r}, flush=True)\n" for block in blocks)
    printed = run([sys.executable, "-"], script, tmp_path, environment).split(f"{END}\n")
    for block, part in zip(blocks, printed[:-1], strict=True):
        assert_shows(block, part)
    assert not (runs / "api" / "modeling_pruned.py").exists(), "a stock checkpoint"
    assert not list(runs.glob("*.state")), "finished runs leave no state behind"


def listed_files() -> list[str]:
    """Files that the tutorial says a run leaves behind."""
    tree = next(block.text for block in blocks_of(TUTORIAL) if block.text.startswith("runs/tutorial/"))
    return re.findall(r"\S+\.(?:md|png|yaml|json|safetensors|py|parquet)\b", tree)


def test_what_the_tutorial_does_not_run_says_why() -> None:
    commented = [block for block in blocks_of(TUTORIAL) if block.skipped]
    assert {block.language for block in commented} == {"bash", "python"}
    assert any("needs the Hub" in block.skipped for block in commented)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_to_files(page: Path) -> None:
    prose = FENCE.sub("", page.read_text())
    for link in LINK.finditer(prose):
        target = link["target"]
        if not re.match(r"[a-z]+:|#", target):
            assert (page.parent / target.partition("#")[0]).exists(), f"{page.name} links to {target}"


YAML_BLOCKS = {
    f"{page.relative_to(ROOT)}:{block.line}": block
    for page in PAGES
    for block in blocks_of(page)
    if block.language == "yaml"
}


@pytest.mark.parametrize("block", YAML_BLOCKS.values(), ids=YAML_BLOCKS)
def test_configs_in_the_docs_are_valid(block: Block) -> None:
    """Whole configs and the one part that is shown alone, targets."""
    settings = yaml.safe_load(block.text)
    if "model" in settings:
        check(settings)
    else:
        assert set(settings) == {"target"}
        TargetConfig.model_validate(settings["target"])


def test_command_lines_of_the_methods_page_are_settings() -> None:
    rows = (ROOT / "docs" / "methods.md").read_text().partition("## ")[0].splitlines()
    lines = [line for row in rows for line in re.findall(r"`(--[^`]*)` \|$", row)]
    assert len(lines) >= 5
    for line in lines:
        read_settings(["--config", str(ROOT / "configs" / "quickstart.yaml"), *shlex.split(line)])


def test_every_entry_of_the_log_has_a_row_in_its_index() -> None:
    """In the order of the entries, so that a row without entry shows, too."""
    index, *entries = re.split(r"^## ", (ROOT / "LOG.md").read_text(), flags=re.M)[1:]
    links = [LINK.search(row.rpartition("|")[0].rpartition("|")[2]) for row in index.splitlines() if "](#" in row]
    assert [link and link["target"] for link in links] == [anchor(entry.splitlines()[0]) for entry in entries]


def anchor(heading: str) -> str:
    """The link to a heading of the same page, as repositories name them."""
    return "#" + re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def stale_part(script: str) -> str:
    """Runs a script that makes a part of the documentation, without writing; what it complains of."""
    command = [sys.executable, str(ROOT / "scripts" / script), "--check"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    return "" if done.returncode == 0 else done.stdout + done.stderr


def test_the_picture_of_the_rooms_is_that_of_the_sources() -> None:
    assert not stale_part("rooms.py")


def test_tables_of_components_show_what_is_registered() -> None:
    assert not stale_part("components.py")
    marked = {name for page in PAGES for name in re.findall(r"<!-- table of (.*) -->", page.read_text())}
    kinds = {"model types", "tasks", "rewards", "policies", "removal rules", "criteria", "compensations", "exports"}
    assert marked == kinds | {"checks", "families", "counted families", "places", "tried places"}


def reference_modules() -> list[str]:
    """The modules that `make docs` documents: those that are listed, and all that lie in open folders."""
    makefile = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    listed = re.search(r"^REFERENCE := \$\(addprefix (?P<prefix>\S+), (?P<names>.*)\)$", makefile, re.M)
    folders = re.search(r"^OPEN := (?P<names>.*)$", makefile, re.M)
    assert listed and folders
    files = [file for name in folders["names"].split() for file in (ROOT / "hf_mabprune" / name).glob("[a-z]*.py")]
    lying = [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files]
    return [*(f"{listed['prefix']}{name}" for name in listed["names"].split()), *lying]


@pytest.mark.whole
def test_public_names_are_in_the_reference(tmp_path: Path) -> None:
    """Builds the pages of the modules where they live, as `make docs` does, in a process of its own: pdoc renames
    modules that it takes for parts of others."""
    homes = {name: getattr(hf_mabprune, name).__module__ for name in hf_mabprune.__all__}
    options = ["--docformat", "google", "--no-show-source", "--output-directory", str(tmp_path)]
    command = [sys.executable, "-m", "pdoc", *options, *sorted(set(homes.values()))]
    subprocess.run(command, check=True, cwd=ROOT, capture_output=True)
    for name, home in homes.items():
        page = (tmp_path / f"{home.replace('.', '/')}.html").read_text()
        assert f'id="{name}"' in page, f"{name} is not on the page of {home}"


@pytest.mark.parametrize("name", hf_mabprune.__all__)
def test_public_names_are_explained(name: str) -> None:
    entry = getattr(hf_mabprune, name)
    text = inspect.getdoc(entry) or ""
    if inspect.isclass(entry) and issubclass(entry, BaseModel):
        unexplained = [field for field, info in entry.model_fields.items() if not info.description]
    else:
        said = explained(text, "Args") | (explained(text, "Attributes") if inspect.isclass(entry) else set())
        unexplained = sorted(set(inspect.signature(entry).parameters) - said)
    assert text, f"{name} has no docstring"
    assert not unexplained, f"{name} does not explain {unexplained}"


def explained(text: str, section: str) -> set[str]:
    """Names that a section of a docstring explains; several may share a line."""
    body = text.partition(f"{section}:\n")[2].partition("\n\n")[0]
    heads = re.findall(r"^    (\w[\w, ]*):", body, re.M)
    return {name.strip() for head in heads for name in head.split(",")}


def test_the_reference_has_the_modules_that_are_promised() -> None:
    for module in reference_modules():
        assert importlib.import_module(module).__doc__, module
    index = (ROOT / "docs" / "README.md").read_text()
    for name in hf_mabprune.__all__:
        home = getattr(hf_mabprune, name).__module__
        assert home in reference_modules()
        assert any(f"`{name}`" in line and f"`{home}`" in line for line in index.splitlines()), name
