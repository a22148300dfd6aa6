"""The recipes of CONTRIBUTING.md work: each one's code is a plugin that passes the contract tests of its kind."""

import re
import shlex
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

pytestmark = pytest.mark.whole
ROOT = Path(__file__).parents[1]
SECTION = re.compile(r"^## (?P<title>[^\n]*)\n(?P<text>.*?)(?=^## |\Z)", re.M | re.S)
CODE = re.compile(r"^```python\n(.*?)^```$", re.M | re.S)
COMMAND = re.compile(r"^```\n(python -m pytest .*)\n```$", re.M)
SECTIONS = {found["title"]: found["text"] for found in SECTION.finditer((ROOT / "CONTRIBUTING.md").read_text())}
RECIPES = [title for title in SECTIONS if title.startswith("Add a") or title == "Plugins"]


@pytest.mark.parametrize("title", RECIPES)
def test_the_code_of_a_recipe_passes_the_contract_tests_of_its_kind(title: str, tmp_path: Path) -> None:
    codes, (command,) = CODE.findall(SECTIONS[title]), COMMAND.findall(SECTIONS[title])
    words = shlex.split(command)[1:]
    files = [after for word, after in pairwise(words) if word == "--plugin"]
    assert codes and len(codes) == len(files), "a recipe is a file, and its command names each"
    for file, code in zip(files, codes, strict=True):
        (tmp_path / file).write_text(code)
    words = [str(tmp_path / word) if word in files else word for word in words]
    done = subprocess.run(
        [sys.executable, *words, "-p", "no:cacheprovider"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    passed = re.search(r"(\d+) passed", done.stdout)
    assert done.returncode == 0 and passed, done.stdout[-3000:] + done.stderr[-3000:]
    assert int(passed[1]) > 0


def test_the_code_of_recipes_leaves_nothing_out() -> None:
    for title in RECIPES:
        assert not re.search(r"^\s*\.\.\.|: \.\.\.", "".join(CODE.findall(SECTIONS[title])), re.M), title
